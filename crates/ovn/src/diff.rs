//! From what shall be ([`RowSet`]) and what is ([`Replica`]) to the transaction between them. Pure.
//!
//! Invariant: only rows of the item at hand are touched, found by their names and `external_ids`; a transaction is
//! guarded by what was read, so that a change made meanwhile lets it fail rather than mix with it.

use std::collections::{BTreeMap, BTreeSet};

use contract::net::Key;
use uuid::Uuid;

use crate::ovsdb::txn::{Columns, is};
use crate::ovsdb::{Atom, Ref, Replica, Row, Txn, Value, Watch};
use crate::project::{
    Cell, Context, DROP_GROUP, Desired, Parent, PortView, REVISION, RowSet, SubnetView, dhcp_key, group_name,
    router_name, switch_name,
};

/// Tables of Northbound that we look at.
pub const WATCHES: &[Watch] = &[
    watch("NB_Global", &["nb_cfg"], &[]),
    watch("Logical_Switch", &["name", "ports", "acls", "dns_records", "other_config", "external_ids"], &[]),
    Watch {
        tell: true,
        ..watch(
            "Logical_Switch_Port",
            &[
                "name",
                "type",
                "addresses",
                "port_security",
                "enabled",
                "up",
                "options",
                "external_ids",
                "dhcpv4_options",
                "dhcpv6_options",
                "tag_request",
            ],
            &[],
        )
    },
    watch(
        "DHCP_Options",
        &["cidr", "options", "external_ids"],
        &["subnet_id", "port_id", "neutron:network_id"],
    ),
    watch("DNS", &["records", "external_ids"], &["ls_name", "port_id"]),
    watch(
        "Logical_Router",
        &["name", "enabled", "options", "external_ids", "ports", "static_routes", "nat"],
        &[],
    ),
    watch(
        "Logical_Router_Port",
        &["name", "mac", "networks", "options", "ipv6_ra_configs", "ha_chassis_group", "external_ids"],
        &[],
    ),
    watch("Logical_Router_Static_Route", &["ip_prefix", "nexthop", "external_ids"], &[]),
    watch(
        "NAT",
        &["type", "external_ip", "logical_ip", "logical_port", "options", "external_ids"],
        &["neutron:fip_id"],
    ),
    watch("HA_Chassis_Group", &["name", "ha_chassis", "external_ids"], &[]),
    watch("HA_Chassis", &["chassis_name", "priority", "external_ids"], &[]),
    watch("Port_Group", &["name", "ports", "acls", "external_ids"], &[]),
    watch("ACL", &["direction", "priority", "match", "action", "external_ids"], &[]),
];

const fn watch(
    table: &'static str,
    columns: &'static [&'static str],
    index: &'static [&'static str],
) -> Watch {
    // Of all tables only the ports tell something by themselves.
    Watch { table, columns, index, tell: false }
}

/// A row that belongs to an item now, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    table: &'static str,
    uuid: Uuid,
    holder: Option<(&'static str, Uuid, &'static str)>,
}

impl Owned {
    /// A row that stands alone.
    pub fn root(table: &'static str, uuid: Uuid) -> Self {
        root(table, uuid)
    }

    /// The row, if it is one of that table.
    pub fn row_in<'a>(&self, db: &'a Replica, table: &str) -> Option<&'a Row> {
        (self.table == table).then(|| db.row(table, self.uuid).map(AsRef::as_ref)).flatten()
    }
}

/// By what a row is found again; the counterpart of [`Desired::key`].
pub fn key_of(table: &str, row: &Row) -> String {
    let id = |key| row.external_id(key);
    match table {
        "DHCP_Options" => dhcp_key(id("subnet_id").unwrap_or_default(), id("port_id")),
        "DNS" => id("port_id").unwrap_or_default().to_owned(),
        "ACL" => {
            let direction = row.text("direction");
            if let Some(rule) = id("neutron:security_group_rule_id") {
                rule.to_owned()
            } else if let Some(switch) = id("allod:switch_down") {
                format!("{switch} {direction} down")
            } else {
                format!("{direction} {} {}", row.int("priority"), row.text("match"))
            }
        }
        "NAT" => match (id("neutron:fip_id"), id("allod:snat")) {
            (Some(floating), _) => floating.to_owned(),
            (None, Some(router)) => format!("snat {router} {}", row.text("logical_ip")),
            (None, None) => String::new(),
        },
        "Logical_Router_Static_Route" => format!("{} {}", row.text("ip_prefix"), row.text("nexthop")),
        "HA_Chassis" => format!("{} {}", id("allod:group").unwrap_or_default(), row.text("chassis_name")),
        _ => row.text("name").to_owned(),
    }
}

/// The row of that name; where there are several, the one that carries a revision.
fn best<'a>(db: &'a Replica, table: &str, name: &str) -> Option<(Uuid, &'a Row)> {
    ranked(db, table, name).into_iter().next()
}

fn ranked<'a>(db: &'a Replica, table: &str, name: &str) -> Vec<(Uuid, &'a Row)> {
    let mut rows: Vec<_> = db.named(table, name).map(|(u, r)| (u, r.as_ref())).collect();
    rows.sort_by_key(|(_, r)| r.external_id(REVISION).is_none());
    rows
}

/// The row whose `external_ids` carry the item's revision.
fn primary(db: &Replica, key: Key) -> Option<(&'static str, Uuid, &Row)> {
    let named =
        |table: &'static str, name: &str| db.named(table, name).next().map(|(u, r)| (table, u, r.as_ref()));
    match key {
        Key::Network(id) => named("Logical_Switch", &switch_name(id)),
        Key::Port(id) => named("Logical_Switch_Port", &id.to_string()),
        Key::Router(id) => named("Logical_Router", &router_name(id)),
        Key::SecurityGroup(id) => named("Port_Group", &group_name(id)),
        Key::FloatingIp(id) => {
            db.external("NAT", "neutron:fip_id", &id.to_string()).next().map(|(u, r)| ("NAT", u, r.as_ref()))
        }
    }
}

/// The revision that Northbound holds of an item.
pub fn revision(db: &Replica, key: Key) -> Option<u64> {
    primary(db, key).and_then(|(.., row)| row.external_id(REVISION)?.parse().ok())
}

/// Rows of `table` held by a column of `holder`.
fn held<'a>(
    db: &'a Replica,
    holder: (&'static str, Uuid, &'static str),
    table: &'static str,
) -> impl Iterator<Item = (Owned, &'a Row)> + 'a {
    let rows = db.row(holder.0, holder.1).into_iter().flat_map(move |h| h.refs(holder.2));
    rows.filter_map(move |uuid| {
        Some((Owned { table, uuid, holder: Some(holder) }, db.row(table, uuid)?.as_ref()))
    })
}

fn root(table: &'static str, uuid: Uuid) -> Owned {
    Owned { table, uuid, holder: None }
}

/// Who holds `uuid` in `column` of a row of `table`.
fn holder_of(
    db: &Replica,
    table: &'static str,
    column: &'static str,
    uuid: Uuid,
) -> Option<(&'static str, Uuid, &'static str)> {
    db.rows(table).find(|(_, r)| r.has_ref(column, uuid)).map(|(u, _)| (table, u, column))
}

/// Everything that belongs to the item now.
pub fn scope(db: &Replica, key: Key) -> Vec<Owned> {
    let mut all = Vec::new();
    match key {
        Key::Network(id) => {
            let name = switch_name(id);
            for (switch, _) in ranked(db, "Logical_Switch", &name) {
                all.push(root("Logical_Switch", switch));
                let ports = held(db, ("Logical_Switch", switch, "ports"), "Logical_Switch_Port");
                all.extend(ports.filter(|(_, r)| r.text("name").starts_with("provnet-")).map(|(o, _)| o));
                let acls = held(db, ("Logical_Switch", switch, "acls"), "ACL");
                all.extend(
                    acls.filter(|(_, r)| r.external_id("allod:switch_down").is_some()).map(|(o, _)| o),
                );
            }
            let options = db.external("DHCP_Options", "neutron:network_id", &id.to_string());
            all.extend(options.map(|(u, _)| root("DHCP_Options", u)));
        }
        Key::Port(id) => {
            let id = id.to_string();
            for (port, row) in db.named("Logical_Switch_Port", &id) {
                let switch = row.external_id("neutron:network_name").unwrap_or_default();
                let known = db.named("Logical_Switch", switch).find(|(_, s)| s.has_ref("ports", port));
                let holder = known
                    .map(|(u, _)| ("Logical_Switch", u, "ports"))
                    .or_else(|| holder_of(db, "Logical_Switch", "ports", port));
                all.push(Owned { table: "Logical_Switch_Port", uuid: port, holder });
            }
            all.extend(db.external("DHCP_Options", "port_id", &id).map(|(u, _)| root("DHCP_Options", u)));
            all.extend(db.external("DNS", "port_id", &id).map(|(u, _)| root("DNS", u)));
        }
        Key::Router(id) => {
            let name = router_name(id);
            for (router, _) in ranked(db, "Logical_Router", &name) {
                all.push(root("Logical_Router", router));
                let of = |column| ("Logical_Router", router, column);
                all.extend(held(db, of("ports"), "Logical_Router_Port").map(|(o, _)| o));
                all.extend(held(db, of("static_routes"), "Logical_Router_Static_Route").map(|(o, _)| o));
                let nat = held(db, of("nat"), "NAT");
                all.extend(nat.filter(|(_, r)| r.external_id("neutron:fip_id").is_none()).map(|(o, _)| o));
            }
            all.extend(group_scope(db, &name));
        }
        Key::FloatingIp(id) => {
            for (nat, _) in db.external("NAT", "neutron:fip_id", &id.to_string()) {
                all.push(Owned {
                    table: "NAT",
                    uuid: nat,
                    holder: holder_of(db, "Logical_Router", "nat", nat),
                });
            }
        }
        Key::SecurityGroup(id) => all.extend(port_group_scope(db, &group_name(id))),
    }
    all
}

/// A gateway group and its members.
pub fn group_scope(db: &Replica, name: &str) -> Vec<Owned> {
    let groups = db.named("HA_Chassis_Group", name).map(|(u, _)| u);
    groups
        .flat_map(|u| {
            let members = held(db, ("HA_Chassis_Group", u, "ha_chassis"), "HA_Chassis").map(|(o, _)| o);
            std::iter::once(root("HA_Chassis_Group", u)).chain(members)
        })
        .collect()
}

/// A port group and its rules.
pub fn port_group_scope(db: &Replica, name: &str) -> Vec<Owned> {
    let groups = db.named("Port_Group", name).map(|(u, _)| u);
    groups
        .flat_map(|u| {
            let acls = held(db, ("Port_Group", u, "acls"), "ACL").map(|(o, _)| o);
            std::iter::once(root("Port_Group", u)).chain(acls)
        })
        .collect()
}

/// What a projection of the item must know; gateways and name servers are added by the caller.
pub fn context(db: &Replica, key: Key, network: Option<base::NetworkId>) -> Context {
    let mut context = Context::default();
    let Some(network) = network else { return context };
    let Some((switch, row)) = best(db, "Logical_Switch", &switch_name(network)) else {
        return context;
    };
    context.domain = row.external_id(crate::project::DOMAIN).unwrap_or_default().to_owned();
    for pair in row.external_id(crate::project::SUBNETS).unwrap_or_default().split(' ') {
        let Some((id, cidr)) = pair.split_once(',') else { continue };
        let Ok(cidr) = cidr.parse() else { continue };
        let mut rows = db.external("DHCP_Options", "subnet_id", id);
        let dhcp = rows.find(|(_, r)| r.external_id("port_id").is_none()).map(|(uuid, r)| {
            let options = r.pairs("options").map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            (uuid, options)
        });
        context.subnets.insert(id.to_owned(), SubnetView { cidr, dhcp });
    }
    if matches!(key, Key::Network(_)) {
        let ports = held(db, ("Logical_Switch", switch, "ports"), "Logical_Switch_Port");
        context.ports = ports.filter_map(|(o, r)| port_view(db, o.uuid, r)).collect();
    }
    context
}

fn port_view(db: &Replica, row: Uuid, port: &Row) -> Option<PortView> {
    let id = port.text("name").to_owned();
    port.external_id("neutron:port_name")?;
    let owner = port.external_id("neutron:device_owner").unwrap_or_default();
    let off = port.external_id(crate::project::NO_DHCP).is_some();
    let subnets = port.external_id(crate::project::SUBNET_IDS).unwrap_or_default();
    let own = db.external("DHCP_Options", "port_id", &id).next();
    let overrides = own.into_iter().flat_map(|(_, r)| {
        r.pairs("external_ids")
            .filter_map(|(k, v)| Some((k.strip_prefix(crate::project::OVERRIDE)?.to_owned(), v.to_owned())))
            .collect::<Vec<_>>()
    });
    Some(PortView {
        row,
        subnets: subnets.split_whitespace().map(str::to_owned).collect(),
        dhcp: port.text("type").is_empty() && !owner.starts_with("network:") && !off,
        overrides: overrides.collect(),
        id,
    })
}

/// A row that must be there first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub String);

/// Whether a column's value is what a column has that was never written.
fn is_default(value: &Value) -> bool {
    value.is_empty()
        || matches!(value, Value::Set(s) if s.len() == 1 && s.first() == Some(&Atom::Str(String::new())))
}

fn same(have: Option<&Value>, want: &Value) -> bool {
    match have {
        Some(have) => have == want || (is_default(have) && is_default(want)),
        None => is_default(want),
    }
}

struct Builder<'a> {
    db: &'a Replica,
    txn: Txn,
    refs: BTreeMap<(&'static str, String), Ref>,
    guarded: BTreeSet<Uuid>,
}

impl Builder<'_> {
    /// Lets the transaction fail if that row is gone meanwhile: a row added to a holder that is gone would vanish.
    fn guard_name(&mut self, table: &'static str, uuid: Uuid) {
        if self.guarded.insert(uuid) {
            let name = self.db.row(table, uuid).map(|r| r.text("name").to_owned()).unwrap_or_default();
            let row = Columns::from([("name".to_owned(), Value::one(name))]);
            self.txn.wait(table, vec![is(&Ref::Uuid(uuid))], &["name"], vec![row]);
        }
    }

    fn holder(&mut self, parent: &Parent) -> Result<Ref, Missing> {
        if let Some(row) = self.refs.get(&(parent.table, parent.key.clone())) {
            return Ok(row.clone());
        }
        let found = best(self.db, parent.table, &parent.key).map(|(u, _)| u);
        let uuid = found.ok_or_else(|| Missing(format!("{} {}", parent.table, parent.key)))?;
        self.guard_name(parent.table, uuid);
        Ok(Ref::Uuid(uuid))
    }

    fn value(&self, cell: &Cell) -> Result<Value, Missing> {
        match cell {
            Cell::Value(value) => Ok(value.clone()),
            Cell::Row(table, key) => {
                let row = self.refs.get(&(*table, key.clone()));
                row.map(|r| Value::one(r.clone())).ok_or_else(|| Missing(format!("{table} {key}")))
            }
        }
    }

    fn mutate(&mut self, table: &str, row: &Ref, column: &str, how: &'static str, what: impl Into<Atom>) {
        self.txn.mutate(table, row, vec![(column.to_owned(), how, Value::one(what))]);
    }

    fn write(&mut self, want: &Desired, held_by: Option<&Owned>) -> Result<(), Missing> {
        let Some(row) = self.refs.get(&(want.table, want.key.clone())).cloned() else { return Ok(()) };
        let existing = match &row {
            Ref::Uuid(uuid) => self.db.row(want.table, *uuid),
            Ref::Named(_) => None,
        };
        let mut columns = Columns::new();
        for (name, cell) in &want.columns {
            let value = self.value(cell)?;
            if !same(existing.and_then(|r| r.get(name)), &value) {
                columns.insert((*name).to_owned(), value);
            }
        }
        match (&row, columns.is_empty()) {
            (Ref::Named(name), _) => self.txn.insert_as(want.table, name, columns),
            (Ref::Uuid(_), false) => self.txn.update(want.table, &row, columns),
            (Ref::Uuid(_), true) => {}
        }
        let Some(parent) = &want.parent else { return Ok(()) };
        let holder = self.holder(parent)?;
        let holds = match (&holder, &row) {
            (Ref::Uuid(h), Ref::Uuid(r)) => {
                self.db.row(parent.table, *h).is_some_and(|h| h.has_ref(parent.column, *r))
            }
            _ => false,
        };
        if !holds {
            self.mutate(parent.table, &holder, parent.column, "insert", row.clone());
            // It moved: the one that held it lets it go.
            if let Some(Owned { holder: Some((table, old, column)), .. }) = held_by {
                self.mutate(table, &Ref::Uuid(*old), column, "delete", row);
            }
        }
        Ok(())
    }

    fn remove(&mut self, owned: &Owned) {
        match owned.holder {
            Some((table, holder, column)) => {
                self.mutate(table, &Ref::Uuid(holder), column, "delete", owned.uuid)
            }
            None => self.txn.delete(owned.table, owned.uuid),
        }
    }

    /// The group of chassis cannot go while a router port refers to it, even one that goes too.
    fn release_group(&mut self, group: Uuid) {
        let ports: Vec<Uuid> = {
            let rows = self.db.rows("Logical_Router_Port");
            rows.filter(|(_, r)| r.has_ref("ha_chassis_group", group)).map(|(u, _)| u).collect()
        };
        for port in ports {
            let none = Columns::from([("ha_chassis_group".to_owned(), Value::none())]);
            self.txn.update("Logical_Router_Port", &Ref::Uuid(port), none);
        }
    }

    fn groups(&mut self, set: &RowSet) {
        for id in &set.groups {
            let name = group_name(*id);
            if self.db.named("Port_Group", &name).next().is_none() {
                let ids = Value::map([("neutron:security_group_id", id.to_string())]);
                let row = self.txn.insert(
                    "Port_Group",
                    Columns::from([
                        ("name".to_owned(), Value::one(name.clone())),
                        ("external_ids".to_owned(), ids),
                    ]),
                );
                self.refs.insert(("Port_Group", name), row);
            }
        }
    }

    fn memberships(&mut self, port: Option<Ref>, want: &BTreeSet<String>) -> Result<(), Missing> {
        let mut have = BTreeSet::new();
        if let Some(Ref::Uuid(port)) = &port {
            for (uuid, group) in self.db.rows("Port_Group").filter(|(_, g)| g.has_ref("ports", *port)) {
                let name = group.text("name");
                if name == DROP_GROUP || name.starts_with("pg_") {
                    have.insert(name.to_owned());
                    if !want.contains(name) {
                        self.mutate("Port_Group", &Ref::Uuid(uuid), "ports", "delete", *port);
                    }
                }
            }
        }
        let Some(port) = port else { return Ok(()) };
        for name in want.difference(&have) {
            let parent = Parent { table: "Port_Group", key: name.clone(), column: "ports" };
            let group = self.holder(&parent)?;
            self.mutate("Port_Group", &group, "ports", "insert", port.clone());
        }
        Ok(())
    }
}

/// The transaction that makes `owned` into `set`. Empty ([`Txn::writes`] false) if it is so already.
///
/// # Errors
/// [`Missing`] if a row of another item must be there first.
pub fn diff(db: &Replica, set: &RowSet, owned: &[Owned]) -> Result<Txn, Missing> {
    let mut b = Builder { db, txn: Txn::new(), refs: BTreeMap::new(), guarded: BTreeSet::new() };
    let mut kept: BTreeMap<(&'static str, String), &Owned> = BTreeMap::new();
    let mut gone: Vec<&Owned> = Vec::new();
    for one in owned {
        let key = db.row(one.table, one.uuid).map(|r| key_of(one.table, r)).unwrap_or_default();
        let wanted = set.rows.iter().any(|d| d.table == one.table && d.key == key);
        // A second row of the same key is one too many.
        if !wanted || kept.contains_key(&(one.table, key.clone())) {
            gone.push(one);
        } else {
            b.guard_external_ids(one);
            b.refs.insert((one.table, key.clone()), Ref::Uuid(one.uuid));
            kept.insert((one.table, key), one);
        }
    }
    for want in &set.rows {
        let key = (want.table, want.key.clone());
        if !b.refs.contains_key(&key) {
            b.guard_absent(want);
            let row = b.txn.name();
            b.refs.insert(key, row);
        }
    }
    b.groups(set);
    for want in &set.rows {
        b.write(want, kept.get(&(want.table, want.key.clone())).copied())?;
    }
    if let Some(want) = &set.member_of {
        let port = set.rows.iter().find(|d| d.table == "Logical_Switch_Port");
        let row = port.and_then(|d| b.refs.get(&(d.table, d.key.clone())).cloned());
        b.memberships(row, want)?;
    }
    for (port, column, key) in &set.dhcp_links {
        let to = key.as_ref().and_then(|k| b.refs.get(&("DHCP_Options", k.clone())).cloned());
        let value = to.map_or_else(Value::none, Value::one);
        if !same(db.row("Logical_Switch_Port", *port).and_then(|r| r.get(column)), &value) {
            let columns = Columns::from([((*column).to_owned(), value)]);
            b.txn.update("Logical_Switch_Port", &Ref::Uuid(*port), columns);
        }
    }
    for one in gone {
        if one.table == "HA_Chassis_Group" {
            b.release_group(one.uuid);
        }
        b.remove(one);
    }
    Ok(b.txn)
}

impl Builder<'_> {
    /// Compare and swap: the tables with a revision must be as read.
    fn guard_external_ids(&mut self, owned: &Owned) {
        let Some(row) = self.db.row(owned.table, owned.uuid) else { return };
        if row.external_id(REVISION).is_some() && owned.table != "Logical_Router_Port" {
            let ids = row.get("external_ids").cloned().unwrap_or_else(Value::none);
            let columns = Columns::from([("external_ids".to_owned(), ids)]);
            self.txn.wait(owned.table, vec![is(&Ref::Uuid(owned.uuid))], &["external_ids"], vec![columns]);
        }
    }

    /// These tables have no unique index on the name: two writers would make two.
    fn guard_absent(&mut self, want: &Desired) {
        let includes = |key: &str| {
            let pair = Value::map([(key, want.key.as_str())]);
            vec![("external_ids".to_owned(), "includes", pair)]
        };
        match want.table {
            "Logical_Switch" | "Logical_Router" => {
                let on = vec![("name".to_owned(), "==", Value::one(want.key.as_str()))];
                self.txn.wait(want.table, on, &["name"], vec![]);
            }
            "NAT" if !want.key.starts_with("snat ") => {
                self.txn.wait(want.table, includes("neutron:fip_id"), &["type"], vec![]);
            }
            "DNS" => self.txn.wait(want.table, includes("port_id"), &["external_ids"], vec![]),
            _ => {}
        }
    }
}
