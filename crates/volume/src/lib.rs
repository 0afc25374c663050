//! volume: not built yet.
