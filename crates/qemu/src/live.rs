//! Work on volumes while a guest has them open.

use std::time::Duration;

use async_trait::async_trait;
use base::{Error, Result, VolumeId};
use contract::drivers::{BlockDevice, LiveDisks};
use serde_json::json;

use crate::guest::Machine;
use crate::process::Process;
use crate::{Qemu, Qmp};

/// How long a copy may take.
const COPY: Duration = Duration::from_secs(4 * 3600);

impl Qemu {
    fn holder(&self, id: VolumeId) -> Result<Option<(std::sync::Arc<Machine>, Process, String)>> {
        for server in self.known()? {
            let machine = self.machine(server);
            if let Some((process, name)) = machine.volume(id) {
                return Ok(Some((machine, process, name)));
            }
        }
        Ok(None)
    }

    async fn open(&self, id: VolumeId) -> Result<(std::sync::Arc<Qmp>, String)> {
        let gone = || Error::unavailable(format!("volume {id} is not open in a guest"));
        let (machine, process, name) = self.holder(id)?.ok_or_else(gone)?;
        Ok((machine.monitor(process).await?, name))
    }
}

#[async_trait]
impl LiveDisks for Qemu {
    async fn in_use(&self, id: VolumeId) -> Result<bool> {
        Ok(self.holder(id)?.is_some())
    }

    async fn copy(&self, id: VolumeId, target: &BlockDevice) -> Result<()> {
        let (qmp, name) = self.open(id).await?;
        let node = format!("t-{}", name.trim_start_matches("d-"));
        let job = format!("copy-{name}");
        let file = json!({"driver": "file", "filename": self.config().seen(&target.path)});
        qmp.call("blockdev-add", json!({"driver": target.format, "node-name": node, "file": file})).await?;
        let arguments =
            json!({"job-id": job, "device": name, "target": node, "sync": "full", "auto-dismiss": false});
        let copied = qmp.job("blockdev-backup", arguments, &job, COPY).await;
        let closed = qmp.call("blockdev-del", json!({"node-name": node})).await;
        copied.and(closed.map(drop))
    }

    async fn grow(&self, id: VolumeId, bytes: u64) -> Result<()> {
        let (qmp, name) = self.open(id).await?;
        qmp.call("block_resize", json!({"node-name": name, "size": bytes})).await.map(drop)
    }
}
