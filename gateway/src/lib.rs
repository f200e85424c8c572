//! millrace-gateway
