//! The data path of one request.
