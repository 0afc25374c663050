//! The local Open_vSwitch database: which tables we watch, and adding and removing ports of a bridge.

use std::time::Duration;

use crate::ovsdb::txn::Columns;
use crate::ovsdb::{Client, Config, Error, Ref, Remote, Result, Txn, Value, Watch};

/// The database's name.
pub const DATABASE: &str = "Open_vSwitch";

/// Tables of the local switch that we look at.
pub const WATCHES: &[Watch] = &[
    Watch {
        table: "Open_vSwitch",
        columns: &["external_ids", "other_config", "next_cfg", "cur_cfg", "bridges", "ssl"],
        index: &[],
        tell: false,
    },
    Watch { table: "SSL", columns: &["private_key", "certificate", "ca_cert"], index: &[], tell: false },
    Watch { table: "Bridge", columns: &["name", "ports", "datapath_type"], index: &[], tell: false },
    Watch { table: "Port", columns: &["name", "interfaces", "external_ids"], index: &[], tell: false },
    Watch {
        table: "Interface",
        columns: &["name", "type", "external_ids", "error", "ofport"],
        index: &["iface-id"],
        tell: false,
    },
];

/// Connects to the local switch's database.
pub fn connect(remote: Remote) -> Client {
    Client::connect(Config { remotes: vec![remote], database: DATABASE, watches: WATCHES })
}

/// Puts a row into `columns` by name.
pub fn columns<const N: usize>(pairs: [(&str, Value); N]) -> Columns {
    pairs.into_iter().map(|(c, v)| (c.to_owned(), v)).collect()
}

/// Adds to `txn`: a port with one interface of the same name on a bridge.
pub fn add_port(txn: &mut Txn, bridge: &Ref, name: &str, kind: &str, external_ids: Value) {
    let interface = txn.insert(
        "Interface",
        columns([("name", Value::one(name)), ("type", Value::one(kind)), ("external_ids", external_ids)]),
    );
    let port =
        txn.insert("Port", columns([("name", Value::one(name)), ("interfaces", Value::one(interface))]));
    txn.mutate("Bridge", bridge, vec![("ports".into(), "insert", Value::one(port))]);
}

/// Adds to `txn`: the port of that name leaves every bridge it is on.
pub fn remove_port(client: &Client, txn: &mut Txn, name: &str) {
    client.read(|db| {
        for (port, _) in db.named("Port", name) {
            for (bridge, _) in db.rows("Bridge").filter(|(_, b)| b.refs("ports").any(|p| p == port)) {
                let gone = vec![("ports".to_owned(), "delete", Value::one(port))];
                txn.mutate("Bridge", &Ref::Uuid(bridge), gone);
            }
        }
    });
}

/// Runs `txn`, and waits until `ovs-vswitchd` has it.
///
/// # Errors
/// Of the database, and [`Error::Disconnected`] if the daemon does not take it in time.
pub async fn commit(client: &Client, mut txn: Txn, within: Duration) -> Result<()> {
    txn.mutate_where("Open_vSwitch", vec![], vec![("next_cfg".into(), "+=", Value::one(1))]);
    txn.select("Open_vSwitch", vec![], &["next_cfg"]);
    let answer = client.transact(&txn).await?;
    let rows = answer.rows();
    let wanted = match rows.first().and_then(|r| r.get("next_cfg")) {
        Some(Value::Set(set)) => match set.first() {
            Some(crate::ovsdb::Atom::Int(n)) => *n,
            _ => 0,
        },
        _ => return Err(Error::Protocol("no next_cfg".into())),
    };
    client
        .wait_for(within, |db| db.rows("Open_vSwitch").any(|(_, r)| r.int("cur_cfg") >= wanted).then_some(()))
        .await
}
