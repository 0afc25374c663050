//! reconcile: not built yet.
