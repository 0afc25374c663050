//! ovn: not built yet.
