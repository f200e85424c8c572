//! client_session
