//! Names and arguments of disks and interfaces, the same for a cold start and for hot-plugging.

use std::path::Path;

use contract::drivers::BlockDevice;
use contract::host::{DiskSpec, NicSpec};
use serde_json::{Value, json};

/// The config drive's name.
pub(crate) const CONFIG_DRIVE: &str = "d-config";

/// A device of a guest. Names are QEMU ids: they begin with a letter and have at most 31 characters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Device {
    /// A disk.
    Disk {
        name: String,
        path: std::path::PathBuf,
        format: &'static str,
        serial: String,
        read_only: bool,
        boot_index: Option<u32>,
    },
    /// An interface.
    Nic { name: String, tap: String, mac: String, mtu: u32 },
}

pub(crate) fn disk_name(name: &str) -> String {
    let short: String = name.chars().filter(char::is_ascii_alphanumeric).take(26).collect();
    format!("d-{short}")
}

pub(crate) fn nic_name(port: base::PortId) -> String {
    let short: String = port.to_string().chars().filter(char::is_ascii_alphanumeric).take(26).collect();
    format!("n-{short}")
}

impl Device {
    pub fn disk(spec: &DiskSpec, at: &BlockDevice, boot_index: Option<u32>) -> Self {
        Device::Disk {
            name: disk_name(&spec.name),
            path: at.path.clone(),
            format: at.format,
            serial: spec.serial.clone(),
            read_only: false,
            boot_index,
        }
    }

    pub fn config_drive(path: &Path) -> Self {
        Device::Disk {
            name: CONFIG_DRIVE.into(),
            path: path.to_owned(),
            format: "raw",
            serial: "config-2".into(),
            read_only: true,
            boot_index: None,
        }
    }

    pub fn nic(spec: &NicSpec, tap: &str) -> Self {
        Device::Nic {
            name: nic_name(spec.port),
            tap: tap.to_owned(),
            mac: spec.mac.to_string(),
            mtu: spec.mtu,
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Device::Disk { name, .. } | Device::Nic { name, .. } => name,
        }
    }

    /// Whether it takes a root port. The config drive does not: it is a SCSI disk, so that it takes no `vdX` name away
    /// from volumes plugged later, and it is there from start to stop.
    pub fn takes_port(&self) -> bool {
        self.name() != CONFIG_DRIVE
    }

    /// `-blockdev` / `blockdev-add` arguments, file first.
    pub fn blockdevs(&self) -> Vec<Value> {
        let Device::Disk { name, path, format, read_only, .. } = self else { return Vec::new() };
        let node = json!({
            "driver": format,
            "node-name": name,
            "read-only": read_only,
            "discard": "unmap",
            "file": {
                "driver": "file",
                "filename": path,
                "read-only": read_only,
                "discard": "unmap",
                "locking": "auto",
            },
        });
        vec![node]
    }

    /// `-netdev` / `netdev_add` arguments.
    pub fn netdev(&self) -> Option<Value> {
        let Device::Nic { name, tap, .. } = self else { return None };
        // No vnet header: OVS's userspace datapath cannot do offloads, and TCP would hang.
        Some(json!({
            "type": "tap", "id": format!("{name}-tap"), "ifname": tap,
            "script": "no", "downscript": "no", "vnet_hdr": false, "vhost": false,
        }))
    }

    /// `-device` / `device_add` arguments on root port `slot`.
    pub fn device(&self, slot: u32) -> Value {
        let bus = format!("rp{slot}");
        if !self.takes_port() {
            return json!({
                "driver": "scsi-hd", "id": "d-config-dev", "drive": CONFIG_DRIVE, "bus": "scsi0.0", "serial": "config-2",
            });
        }
        match self {
            Device::Disk { name, serial, boot_index, .. } => {
                let mut device = json!({"driver": "virtio-blk-pci", "id": format!("{name}-dev"), "drive": name, "bus": bus});
                if let Value::Object(map) = &mut device {
                    if !serial.is_empty() {
                        map.insert("serial".into(), json!(serial));
                    }
                    if let Some(index) = boot_index {
                        map.insert("bootindex".into(), json!(index));
                    }
                }
                device
            }
            Device::Nic { name, mac, mtu, .. } => json!({
                "driver": "virtio-net-pci", "id": format!("{name}-dev"), "netdev": format!("{name}-tap"),
                "mac": mac, "host_mtu": mtu, "romfile": "", "bus": bus,
            }),
        }
    }
}
