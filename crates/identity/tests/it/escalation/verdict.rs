//! What may not have become of the tables, and what a token may not be worth, whatever the attackers did.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use store::Content;

use super::Stage;

/// Rows by table and id.
pub type Rows = BTreeMap<String, BTreeMap<String, Value>>;

/// Tables that tell what happened, and give nobody a right.
const NOTES: [&str; 8] = [
    "allod_outbox",
    "identity_audit",
    "identity_epochs",
    "identity_logins",
    "identity_oauth1_nonces",
    "identity_revocation_events",
    "identity_revocations",
    "identity_remote_ids",
];

/// The rows of a dump.
pub fn rows(dump: &Path) -> Rows {
    let mut all = Rows::new();
    let mut table = String::new();
    for line in std::fs::read_to_string(dump).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let Some(name) = line["table"].as_str() {
            table = name.to_owned();
        }
        let (Some(id), Some(body)) = (line["row"][0].as_str(), line["row"][1].as_str()) else { continue };
        if let Ok(body) = serde_json::from_str(body) {
            all.entry(table.clone()).or_default().insert(id.to_owned(), body);
        }
    }
    all
}

/// `project:ID`, `domain:ID`, `system`, or nothing, of a token or an assignment's scope.
pub fn place_of(scope: &Value) -> String {
    match (scope["project"]["id"].as_str(), scope["domain"]["id"].as_str()) {
        (Some(id), _) => format!("project:{id}"),
        (_, Some(id)) => format!("domain:{id}"),
        _ if scope["system"].is_object() => "system".to_owned(),
        _ => String::new(),
    }
}

/// Who attacks, and whether a manager of the domain is among them.
pub struct Party<'a> {
    pub stage: &'a Stage,
    pub accounts: BTreeSet<String>,
    pub manager: bool,
}

impl Party<'_> {
    /// Whether an account of that domain is theirs to use.
    fn controls(&self, user: &str, domain: &str) -> bool {
        let managed = self.manager && domain == self.stage.own.domain && !self.stage.protected.contains(user);
        managed || self.accounts.contains(user)
    }

    /// The roles they had on a place, all together.
    fn had(&self, place: &str, role: &str) -> bool {
        self.stage.rights.iter().any(|((user, at), roles)| {
            let domain = self.stage.rows["identity_users"].get(user).map(|u| u["domain_id"].clone());
            let domain = domain.as_ref().and_then(Value::as_str).unwrap_or_default();
            at == place && roles.contains(role) && self.controls(user, domain)
        })
    }

    /// What is wrong with a token they hold.
    pub fn token(&self, token: &Value) -> Option<String> {
        let stage = self.stage;
        let user = token["user"]["id"].as_str().unwrap();
        let place = place_of(token);
        let empty = Vec::new();
        let roles = token["roles"].as_array().unwrap_or(&empty);
        let mut roles = roles.iter().map(|r| r["name"].as_str().unwrap());
        let told = |why: &str| Some(format!("{why}: a token of {user} on {place} {}", token["roles"]));
        if user == stage.boss {
            // By what was handed out: never more than that.
            let lent = place == format!("project:{}", stage.own.project)
                && roles.all(|r| r == "member" || r == "reader");
            return if lent { None } else { told("more than the administrator lent") };
        }
        if !self.controls(user, token["user"]["domain"]["id"].as_str().unwrap()) {
            return told("somebody else's account");
        }
        let domain = token["project"]["domain"]["id"].as_str().or(token["domain"]["id"].as_str());
        let managed = self.manager && domain == Some(stage.own.domain.as_str());
        let may = |role: &str| {
            let listed = ["manager", "member", "reader", "load-balancer_member"].contains(&role);
            (managed && listed) || self.had(&place, role)
        };
        if roles.all(may) && place != "system" { None } else { told("more than they had") }
    }

    /// What is wrong with the tables.
    pub fn tables(&self, content: &Content, dump: &Path) -> Option<String> {
        let changed: Vec<&String> = content
            .iter()
            .filter(|(table, now)| {
                !NOTES.contains(&table.as_str()) && self.stage.content.get(*table) != Some(now)
            })
            .map(|(table, _)| table)
            .collect();
        if changed.is_empty() {
            return None;
        }
        let after = rows(dump);
        let none = BTreeMap::new();
        for table in changed {
            let (was, is) = (self.stage.rows.get(table).unwrap_or(&none), after.get(table).unwrap_or(&none));
            let ids: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for id in ids {
                let change = Change { party: self, after: &after, id, was: was.get(id), is: is.get(id) };
                if change.was != change.is && !change.may(table) {
                    return Some(format!("{table} {id}: {} became {}", json!(change.was), json!(change.is)));
                }
            }
        }
        None
    }
}

/// A row that is not as it was.
struct Change<'a> {
    party: &'a Party<'a>,
    after: &'a Rows,
    id: &'a str,
    was: Option<&'a Value>,
    is: Option<&'a Value>,
}

impl Change<'_> {
    /// A row of a table as it was, or as it is where it is new.
    fn row(&self, table: &str, id: &str) -> Option<&Value> {
        let of = |rows: &'_ Rows| rows.get(table).is_some_and(|t| t.contains_key(id));
        let rows = if of(&self.party.stage.rows) { &self.party.stage.rows } else { self.after };
        rows.get(table)?.get(id)
    }

    fn gone(&self, table: &str, id: &str) -> bool {
        !self.after.get(table).is_some_and(|t| t.contains_key(id))
    }

    fn own(&self, table: &str, id: &str) -> bool {
        self.row(table, id).is_some_and(|row| row["domain_id"] == *self.party.stage.own.domain)
    }

    fn controls(&self, user: &str) -> bool {
        let domain = self.row("identity_users", user).and_then(|u| u["domain_id"].as_str());
        self.party.controls(user, domain.unwrap_or_default())
    }

    /// Whether both before and after fit.
    fn both(&self, fits: impl Fn(&Value) -> bool) -> bool {
        self.was.is_none_or(&fits) && self.is.is_none_or(&fits)
    }

    /// Whether it went with a project or an account of the domain, as it must.
    fn went_along(&self, row: &Value, users: &[&str]) -> bool {
        let stage = self.party.stage;
        let project = row["project_id"]
            .as_str()
            .is_some_and(|id| self.own("identity_projects", id) && self.gone("identity_projects", id));
        let user = |key: &&str| {
            row[*key].as_str().is_some_and(|id| {
                self.own("identity_users", id)
                    && self.gone("identity_users", id)
                    && !stage.protected.contains(id)
            })
        };
        self.is.is_none() && self.party.manager && (project || users.iter().any(user))
    }

    fn may(&self, table: &str) -> bool {
        let (party, stage) = (self.party, self.party.stage);
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let own = |row: &Value| row["domain_id"] == *stage.own.domain;
        let managed = party.manager && !stage.protected.contains(self.id) && self.both(own);
        let row = self.is.or(self.was).unwrap();
        match table {
            "identity_users" => managed || (party.accounts.contains(self.id) && self.password_only()),
            "identity_groups" => managed,
            "identity_projects" => {
                let below = |row: &Value| {
                    let parent = text(row, "parent_id");
                    parent == stage.own.domain || self.own("identity_projects", &parent)
                };
                managed && self.both(below)
            }
            "identity_memberships" => {
                let (user, group) = (text(row, "user_id"), text(row, "group_id"));
                let in_domain = self.own("identity_users", &user) && self.own("identity_groups", &group);
                party.manager && in_domain && !stage.protected.contains(&group)
            }
            "identity_assignments" => self.assignment(row),
            "identity_trusts" => {
                let by = text(row, "trustor_user_id");
                let lent = by == stage.boss
                    && self.lent(row)
                    && self.was.is_none()
                    && !row["redelegated_trust_id"].is_null();
                self.controls(&by) || lent || self.went_along(row, &["trustee_user_id", "trustor_user_id"])
            }
            "identity_application_credentials" | "identity_credentials" | "identity_access_rules" => {
                self.both(|row| self.controls(&text(row, "user_id"))) || self.went_along(row, &["user_id"])
            }
            "identity_access_tokens" => {
                // A program may ask; who says yes gives of the own.
                self.controls(&text(row, "authorizing_user_id"))
                    || self.went_along(row, &["authorizing_user_id"])
            }
            "identity_request_tokens" => {
                let yes = row["authorizing_user_id"].as_str();
                yes.is_none_or(|user| self.controls(user)) || self.went_along(row, &["authorizing_user_id"])
            }
            "identity_limits" | "identity_endpoint_filters" => self.went_along(row, &[]),
            _ => false,
        }
    }

    fn lent(&self, trust: &Value) -> bool {
        let stage = self.party.stage;
        let harmless = |id: &Value| {
            let name = self.row("identity_roles", id.as_str().unwrap()).map(|r| r["name"].clone());
            stage.managed.contains(id.as_str().unwrap()) && name != Some(json!("manager"))
        };
        trust["project_id"] == *stage.own.project && trust["roles"].as_array().unwrap().iter().all(harmless)
    }

    fn assignment(&self, row: &Value) -> bool {
        let (party, stage) = (self.party, self.party.stage);
        let text = |key: &str| row[key].as_str();
        let actor = match (text("user_id"), text("group_id")) {
            (Some(user), _) => self.own("identity_users", user).then_some(("identity_users", user)),
            (_, Some(group)) => self.own("identity_groups", group).then_some(("identity_groups", group)),
            _ => None,
        };
        let place = match (text("project_id"), text("domain_id")) {
            (Some(project), _) => self.own("identity_projects", project),
            (_, Some(domain)) => domain == stage.own.domain,
            _ => false,
        };
        let listed = text("role_id").is_some_and(|role| stage.managed.contains(role));
        let given = actor.is_some() && place && listed;
        let ended = actor.is_some_and(|(table, id)| self.gone(table, id) && !stage.protected.contains(id));
        party.manager && (given || self.went_along(row, &[]) || (self.is.is_none() && ended))
    }

    /// Whether nothing changed but the user's own password.
    fn password_only(&self) -> bool {
        let bare = |row: Option<&Value>| {
            let mut row = row.cloned().unwrap_or_default();
            for key in [
                "password",
                "former_passwords",
                "password_changed_at",
                "password_expires_at",
                "password_self_service",
                "token_generation",
            ] {
                row.as_object_mut().unwrap().remove(key);
            }
            row
        };
        self.was.is_some() && self.is.is_some() && bare(self.was) == bare(self.is)
    }
}
