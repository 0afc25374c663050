//! imagebuild: not built yet.
