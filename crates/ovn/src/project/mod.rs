//! The projection: what rows of OVN Northbound realise a resource. Pure; names and `external_ids` are those of
//! Neutron's OVN driver, because operators' habits and tools depend on them.
//!
//! Invariant: no user text reaches a match, an option or a row's name unchecked; display names go to `external_ids`
//! only. Northbound stores any nonsense and fails later, on every host.
//!
//! Start reading at [`project`]; [`diff`](crate::diff) turns its answer into a transaction.

mod dhcp;
mod network;
mod port;
mod router;
mod security;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;

use base::net::IpNet;
use base::{NetworkId, PortId, RouterId, SecurityGroupId};
use contract::net::Item;
use uuid::Uuid;

use crate::ovsdb::Value;

pub use dhcp::port_option;
pub use network::{DOMAIN, OVERRIDE, SUBNETS};
pub use port::{NO_DHCP, SUBNET_IDS};
pub use router::gateway_group;
pub use security::{DROP_GROUP, base_rows};

/// The generation a row was made from.
pub const REVISION: &str = "neutron:revision_number";

/// A column of a row to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// This value.
    Value(Value),
    /// A reference to the row with this key in the same set.
    Row(&'static str, String),
}

/// The row that holds another in one of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its table.
    pub table: &'static str,
    /// Its key (the name); in the same set or already there.
    pub key: String,
    /// The column.
    pub column: &'static str,
}

/// A row to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its table.
    pub table: &'static str,
    /// By what it is found again; see [`key_of`](crate::diff::key_of).
    pub key: String,
    /// Columns that are ours; others stay as they are.
    pub columns: BTreeMap<&'static str, Cell>,
    /// Who holds it, for tables whose rows cannot stand alone.
    pub parent: Option<Parent>,
}

impl Desired {
    fn new(table: &'static str, key: impl Into<String>) -> Self {
        Desired { table, key: key.into(), columns: BTreeMap::new(), parent: None }
    }

    /// A row whose key is its name.
    fn named(table: &'static str, name: impl Into<String>) -> Self {
        let name = name.into();
        Desired::new(table, name.clone()).set("name", Value::one(name))
    }

    fn set(mut self, column: &'static str, value: Value) -> Self {
        self.columns.insert(column, Cell::Value(value));
        self
    }

    fn text(self, column: &'static str, text: impl Display) -> Self {
        self.set(column, Value::one(text.to_string()))
    }

    fn refer(mut self, column: &'static str, table: &'static str, key: impl Into<String>) -> Self {
        self.columns.insert(column, Cell::Row(table, key.into()));
        self
    }

    fn within(mut self, table: &'static str, key: impl Into<String>, column: &'static str) -> Self {
        self.parent = Some(Parent { table, key: key.into(), column });
        self
    }
}

/// All rows of one item.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowSet {
    /// Rows.
    pub rows: Vec<Desired>,
    /// For a port: names of the port groups that it is a member of, and of no other of ours.
    pub member_of: Option<BTreeSet<String>>,
    /// Port groups that others own and that must be there, because a match or a membership names them.
    pub groups: BTreeSet<SecurityGroupId>,
    /// For a network: which DHCP options its ports use now: `(port's row, column, key of the options)`.
    pub dhcp_links: Vec<(Uuid, &'static str, Option<String>)>,
}

/// What a projection must know of the rows around it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Context {
    /// Subnets of the port's network.
    pub subnets: BTreeMap<String, SubnetView>,
    /// The network's domain.
    pub domain: String,
    /// For a network: its ports.
    pub ports: Vec<PortView>,
    /// For a router: chassis that may carry its gateway, best first.
    pub gateways: Vec<String>,
    /// Name servers for subnets that name none.
    pub dns_servers: Vec<IpAddr>,
}

/// A subnet as found in Northbound.
#[derive(Debug, Clone, PartialEq)]
pub struct SubnetView {
    /// Its prefix.
    pub cidr: IpNet,
    /// Its DHCP options, if it has any: their row and what they are.
    pub dhcp: Option<(Uuid, BTreeMap<String, String>)>,
}

/// A port as found in Northbound.
#[derive(Debug, Clone, PartialEq)]
pub struct PortView {
    /// Its row.
    pub row: Uuid,
    /// Its id.
    pub id: String,
    /// Subnets of its addresses, in order.
    pub subnets: Vec<String>,
    /// Whether it gets DHCP options of its subnets.
    pub dhcp: bool,
    /// Its own DHCP options (OVN's names), see [`port_option`].
    pub overrides: BTreeMap<String, String>,
}

/// The rows of `item`.
pub fn project(item: &Item, context: &Context) -> RowSet {
    match item {
        Item::Network(network) => network::network(network, context),
        Item::Port(port) => port::port(port, context),
        Item::Router(router) => router::router(router, context),
        Item::FloatingIp(floating) => router::floating_ip(floating),
        Item::SecurityGroup(group) => security::group(group),
    }
}

/// Name of a network's logical switch.
pub fn switch_name(id: NetworkId) -> String {
    format!("neutron-{id}")
}

/// Name of a router's logical router.
pub fn router_name(id: RouterId) -> String {
    format!("neutron-{id}")
}

/// Name of a router port.
pub fn router_port_name(id: PortId) -> String {
    format!("lrp-{id}")
}

/// Name of a security group's port group (OVN allows no `-` there).
pub fn group_name(id: SecurityGroupId) -> String {
    format!("pg_{}", id.to_string().replace('-', "_"))
}

/// Key of a `DHCP_Options` row.
pub fn dhcp_key(subnet: impl Display, port: Option<&str>) -> String {
    port.map_or_else(|| subnet.to_string(), |port| format!("{subnet} {port}"))
}

fn pairs<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn map(pairs: BTreeMap<String, String>) -> Value {
    Value::map(pairs)
}

fn spaced(items: impl IntoIterator<Item = impl Display>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(" ")
}
