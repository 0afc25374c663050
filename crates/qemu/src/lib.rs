//! qemu: not built yet.
