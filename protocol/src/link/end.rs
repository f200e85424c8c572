//! One end of a link, sans-IO.
