//! millrace-loadgen
