//! millrace-dispatcher
