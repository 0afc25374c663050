//! What extra specs may be (Nova's `nova/api/validation/extra_specs`, checked since microversion 2.86).

/// What the value of a known key must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    /// A whole number, at least this.
    Int(i64),
    Words(&'static [&'static str]),
    Text,
}

/// Namespaces whose keys are all known; keys of others (and without one) are free.
const NAMESPACES: &[&str] =
    &["accel", "hide_hypervisor_id", "hw", "hw_rng", "hw_video", "os", "pci_passthrough", "quota"];

const POLICIES: &[&str] = &["dedicated", "shared", "mixed"];
const THREADS: &[&str] = &["prefer", "isolate", "require"];

const KEYS: &[(&str, Kind)] = &[
    ("accel:device_profile", Kind::Text),
    ("hide_hypervisor_id", Kind::Bool),
    ("hw:boot_menu", Kind::Bool),
    ("hw:cpu_cores", Kind::Int(1)),
    ("hw:cpu_dedicated_mask", Kind::Text),
    ("hw:cpu_max_cores", Kind::Int(1)),
    ("hw:cpu_max_sockets", Kind::Int(1)),
    ("hw:cpu_max_threads", Kind::Int(1)),
    ("hw:cpu_policy", Kind::Words(POLICIES)),
    ("hw:cpu_realtime", Kind::Bool),
    ("hw:cpu_realtime_mask", Kind::Text),
    ("hw:cpu_sockets", Kind::Int(1)),
    ("hw:cpu_thread_policy", Kind::Words(THREADS)),
    ("hw:cpu_threads", Kind::Int(1)),
    ("hw:emulator_threads_policy", Kind::Words(&["isolate", "share"])),
    ("hw:hide_hypervisor_id", Kind::Bool),
    ("hw:input_bus", Kind::Words(&["usb", "virtio"])),
    ("hw:locked_memory", Kind::Bool),
    ("hw:max_cpus", Kind::Int(1)),
    ("hw:maxphysaddr_bits", Kind::Int(0)),
    ("hw:maxphysaddr_mode", Kind::Words(&["passthrough", "emulate"])),
    ("hw:mem_encryption", Kind::Bool),
    ("hw:mem_page_size", Kind::Text),
    ("hw:numa_nodes", Kind::Int(1)),
    ("hw:pci_numa_affinity_policy", Kind::Words(&["required", "preferred", "legacy", "socket"])),
    ("hw:pmem", Kind::Text),
    ("hw:pmu", Kind::Bool),
    ("hw:serial_port_count", Kind::Int(0)),
    ("hw:tpm_model", Kind::Words(&["tpm-tis", "tpm-crb"])),
    ("hw:tpm_version", Kind::Words(&["1.2", "2.0"])),
    ("hw:vif_multiqueue_enabled", Kind::Bool),
    ("hw:viommu_model", Kind::Words(&["intel", "smmuv3", "virtio", "auto"])),
    ("hw:virtio_packed_ring", Kind::Bool),
    ("hw:watchdog_action", Kind::Words(&["none", "pause", "poweroff", "reset", "disabled"])),
    ("hw_rng:allowed", Kind::Bool),
    ("hw_rng:rate_bytes", Kind::Int(0)),
    ("hw_rng:rate_period", Kind::Int(0)),
    ("hw_video:ram_max_mb", Kind::Int(0)),
    ("os:monitors", Kind::Int(1)),
    ("os:resolution", Kind::Text),
    ("os:secure_boot", Kind::Words(&["required", "preferred", "disabled", "optional"])),
    ("pci_passthrough:alias", Kind::Text),
    ("quota:cpu_limit", Kind::Int(0)),
    ("quota:cpu_period", Kind::Int(0)),
    ("quota:cpu_quota", Kind::Int(-1)),
    ("quota:cpu_reservation", Kind::Int(0)),
    ("quota:cpu_shares", Kind::Int(0)),
    ("quota:cpu_shares_level", Kind::Words(&["low", "normal", "high", "custom"])),
    ("quota:disk_io_limit", Kind::Int(0)),
    ("quota:disk_read_bytes_sec", Kind::Int(0)),
    ("quota:disk_read_iops_sec", Kind::Int(0)),
    ("quota:disk_total_bytes_sec", Kind::Int(0)),
    ("quota:disk_total_iops_sec", Kind::Int(0)),
    ("quota:disk_write_bytes_sec", Kind::Int(0)),
    ("quota:disk_write_iops_sec", Kind::Int(0)),
    ("quota:memory_limit", Kind::Int(0)),
    ("quota:memory_reservation", Kind::Int(0)),
    ("quota:memory_shares", Kind::Int(0)),
    ("quota:separate_tenant_net", Kind::Bool),
    ("quota:vif_inbound_average", Kind::Int(0)),
    ("quota:vif_inbound_burst", Kind::Int(0)),
    ("quota:vif_inbound_peak", Kind::Int(0)),
    ("quota:vif_limit", Kind::Int(0)),
    ("quota:vif_outbound_average", Kind::Int(0)),
    ("quota:vif_outbound_burst", Kind::Int(0)),
    ("quota:vif_outbound_peak", Kind::Int(0)),
    ("quota:vif_reservation", Kind::Int(0)),
];

/// Refuses unknown keys of known namespaces, and values that a known key cannot have.
///
/// # Errors
/// The reason, for people.
pub fn check(key: &str, value: &str) -> Result<(), String> {
    if let Some(name) = key.strip_prefix("trait").and_then(|k| k.split_once(':')).map(|(_, name)| name) {
        let good = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(good) {
            return Err("a trait has upper-case letters, digits and '_'".to_owned());
        }
        return fits(Kind::Words(&["required", "forbidden"]), value);
    }
    if key.starts_with("resources") && key.contains(':') {
        return fits(Kind::Int(0), value);
    }
    // Shares of a NUMA node: `hw:numa_cpus.0`.
    if key.starts_with("hw:numa_cpus.") || key.starts_with("hw:numa_mem.") {
        return fits(Kind::Text, value);
    }
    if let Some((_, kind)) = KEYS.iter().find(|(known, _)| *known == key) {
        return fits(*kind, value);
    }
    let namespace = key.split_once(':').map(|(namespace, _)| namespace);
    match namespace.filter(|n| NAMESPACES.contains(n)) {
        None => Ok(()),
        Some(_) => {
            Err(format!("Validation failed; extra spec '{key}' does not appear to be a valid extra spec."))
        }
    }
}

fn fits(kind: Kind, value: &str) -> Result<(), String> {
    let refused = |wanted: String| Err(format!("Validation failed; '{value}' is not {wanted}."));
    match kind {
        Kind::Bool => match value.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "on" | "y" | "yes" | "0" | "f" | "false" | "off" | "n" | "no" => Ok(()),
            _ => refused("a boolean".to_owned()),
        },
        Kind::Int(least) => match value.parse::<i64>() {
            Ok(n) if n >= least => Ok(()),
            _ => refused(format!("a whole number of at least {least}")),
        },
        Kind::Words(words) if words.contains(&value) => Ok(()),
        Kind::Words(words) => refused(format!("one of {}", words.join(", "))),
        Kind::Text if value.is_empty() => refused("a text".to_owned()),
        Kind::Text => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_checked_and_free_ones_are_not() {
        for (key, value) in [
            ("scs:name-v2", "SCS-1V-2"),
            ("hw:cpu_policy", "dedicated"),
            ("hw_rng:allowed", "True"),
            ("quota:disk_total_iops_sec", "500"),
            ("trait:HW_CPU_X86_AVX", "required"),
            ("resources:CUSTOM_GPU", "1"),
            ("hw:numa_cpus.0", "0-3"),
            ("anything", ""),
        ] {
            assert_eq!(check(key, value), Ok(()), "{key}");
        }
        for (key, value) in [
            ("hw:cpu_polici", "dedicated"),
            ("hw:cpu_policy", "exclusive"),
            ("hw:cpu_sockets", "0"),
            ("hw_rng:allowed", "maybe"),
            ("quota:nothing", "1"),
            ("trait:avx", "required"),
            ("trait:HW_CPU_X86_AVX", "wanted"),
            ("resources:VCPU", "many"),
        ] {
            assert!(check(key, value).is_err(), "{key}");
        }
    }
}
