//! scs-0115 and what lies around it: rules that security groups begin with, default networks.

use osclient::parameter;
use serde_json::{Value, json};

use super::Notes;
use crate::facts::{Abort, Facts, Known};
use crate::journal::{Scope, Thing};

fn text<'a>(rule: &'a Value, name: &str) -> Option<&'a str> {
    rule.get(name).and_then(Value::as_str).filter(|t| !t.is_empty())
}

fn truth(rule: &Value, name: &str) -> bool {
    match rule.get(name) {
        Some(Value::Bool(b)) => *b,
        Some(Value::String(s)) => s.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// What rules let in, and for which families they let everything out.
#[derive(Default)]
struct Tally {
    ingress: usize,
    default: [bool; 2],
    custom: [bool; 2],
}

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

fn tally(rules: &[Value]) -> Tally {
    let mut tally = Tally::default();
    for rule in rules {
        match text(rule, "direction") {
            Some("ingress") => {
                let own =
                    text(rule, "remote_group_id") == Some("PARENT") && !truth(rule, "used_in_non_default_sg");
                tally.ingress += usize::from(!own);
            }
            Some("egress") if text(rule, "remote_ip_prefix").is_none() => {
                for (index, family) in FAMILIES.iter().enumerate() {
                    if text(rule, "ethertype") == Some(family) {
                        tally.default[index] |= truth(rule, "used_in_default_sg");
                        tally.custom[index] |= truth(rule, "used_in_non_default_sg");
                    }
                }
            }
            _ => {}
        }
    }
    tally
}

/// The template of security groups, or, on clouds without it, a group just made.
pub(super) async fn default_rules(facts: &Facts) -> Known<Notes> {
    let network = facts.network()?;
    let rules = match network.list("/default-security-group-rules", "default_security_group_rules").await {
        Ok(rules) => rules,
        Err(e) if e.status() == Some(404) => return custom_group(facts).await,
        Err(e) => return Err(e.into()),
    };
    let mut notes = Notes::default();
    let tally = tally(&rules);
    if tally.ingress > 0 {
        notes.error(format!(
            "{} default rules let traffic in (only from the group itself is allowed)",
            tally.ingress
        ));
    }
    for (groups, out) in [("the default group", tally.default), ("other groups", tally.custom)] {
        let missing: Vec<_> = FAMILIES.iter().zip(out).filter(|(_, there)| !there).map(|(f, _)| *f).collect();
        notes.offenders(&format!("no default rule lets all traffic of {groups} out"), missing);
    }
    Ok(notes)
}

/// A group just made lets everything out and nothing in.
pub(super) async fn custom_group(facts: &Facts) -> Known<Notes> {
    let network = facts.network()?;
    let name = facts.name("0115-group");
    let scope = Scope::new(&facts.journal);
    let result = async {
        let seq = scope.intend(Thing::SecurityGroup, &name).await?;
        let body = json!({"security_group": {"name": name, "description": facts.description()}});
        let made = network.post("/security-groups", body).await?;
        let id = made.pointer("/security_group/id").and_then(Value::as_str).unwrap_or_default().to_owned();
        scope.made(seq, &id)?;
        let found = network.get(&format!("/security-groups/{id}")).await?;
        let rules = found.pointer("/security_group/security_group_rules").and_then(Value::as_array).cloned();
        rules.ok_or_else(|| Abort("a security group without a list of rules".into()))
    }
    .await;
    let mut notes = Notes::default();
    scope.clear(facts, &mut notes).await;
    let rules = result?;
    let of = |direction: &'static str| rules.iter().filter(move |r| text(r, "direction") == Some(direction));
    let ingress = of("ingress").count();
    if ingress > 0 {
        notes.error(format!("a group just made has {ingress} rules that let traffic in"));
    }
    let missing: Vec<_> = FAMILIES
        .iter()
        .filter(|f| !of("egress").any(|r| text(r, "ethertype") == Some(**f)))
        .copied()
        .collect();
    notes.offenders("a group just made lets no traffic out", missing);
    Ok(notes)
}

/// Beyond: one external network is the default.
pub(super) async fn default_network(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    let path = format!("/networks?{}", parameter("router:external", "True"));
    let found = facts.network()?.list(&path, "networks").await?;
    let default: Vec<_> =
        found.iter().filter(|n| truth(n, "is_default")).filter_map(|n| text(n, "name")).collect();
    match default.as_slice() {
        [_] => {}
        [] => notes.error(format!("none of {} external networks has is_default", found.len())),
        several => notes.error(format!("several external networks have is_default: {}", several.join(", "))),
    }
    Ok(notes)
}

/// Beyond: a shared pool of IPv6 subnets is the default.
pub(super) async fn default_pool(facts: &Facts) -> Known<Notes> {
    let mut notes = Notes::default();
    let found = facts.network()?.list("/subnetpools", "subnetpools").await?;
    let six = |p: &&Value| p.get("ip_version").and_then(Value::as_i64) == Some(6);
    if !found.iter().filter(six).any(|p| truth(p, "shared") && truth(p, "is_default")) {
        notes.error(format!("no shared IPv6 subnet pool is the default (of {} pools)", found.len()));
    }
    Ok(notes)
}

/// Beyond: the network service has an extension.
pub(super) async fn extension(facts: &Facts, alias: &str) -> Known<Notes> {
    let mut notes = Notes::default();
    let found = facts.network()?.list("/extensions", "extensions").await?;
    if !found.iter().any(|e| text(e, "alias") == Some(alias)) {
        notes.error(format!("the network service has no extension {alias}"));
    }
    Ok(notes)
}
