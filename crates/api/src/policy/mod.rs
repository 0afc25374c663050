//! Policy: who may do what, in oslo.policy's language.
//!
//! Rules are parsed once; evaluation walks a tree. A rule is evaluated twice in a request: before the body is read with
//! an unknown target (three-valued, so that only a caller who could never pass is refused), and by the handler with
//! the real one ([`crate::Ctx::allow`]).

mod eval;
mod parse;

use std::borrow::Cow;
use std::collections::HashMap;

use base::{Error, ProjectId, Result, UserId};
use contract::AuthContext;

use crate::Op;
use eval::Tri;
pub use parse::Expr;

/// Rules every service has. `context_is_admin` decides who sees everything.
const BASE_RULES: &[(&str, &str)] = &[
    ("context_is_admin", "role:admin"),
    ("admin_api", "rule:context_is_admin"),
    ("admin_required", "role:admin"),
    ("admin_only", "rule:context_is_admin"),
    ("default", "rule:admin_or_owner"),
    ("owner", "project_id:%(project_id)s or user_id:%(user_id)s"),
    ("admin_or_owner", "rule:context_is_admin or project_id:%(project_id)s"),
    ("service_api", "role:service"),
    ("service_or_admin", "role:service or rule:context_is_admin"),
    ("project_reader", "role:reader and project_id:%(project_id)s"),
    ("project_member", "role:member and project_id:%(project_id)s"),
    ("project_manager", "role:manager and project_id:%(project_id)s"),
    ("project_admin", "role:admin and project_id:%(project_id)s"),
    ("project_reader_or_admin", "rule:project_reader or rule:context_is_admin"),
    ("project_member_or_admin", "rule:project_member or rule:context_is_admin"),
    ("project_manager_or_admin", "rule:project_manager or rule:context_is_admin"),
    ("domain_reader", "role:reader and domain_id:%(domain_id)s"),
    ("domain_member", "role:member and domain_id:%(domain_id)s"),
    ("domain_manager", "role:manager and domain_id:%(domain_id)s"),
    ("domain_admin", "role:admin and domain_id:%(domain_id)s"),
    ("system_reader", "role:reader and system_scope:all"),
    ("system_member", "role:member and system_scope:all"),
    ("system_admin", "role:admin and system_scope:all"),
    ("cloud_admin", "role:admin and (is_admin_project:True or system_scope:all)"),
];

/// All rules of a service, parsed and checked.
#[derive(Debug)]
pub struct Policy {
    rules: HashMap<String, Expr>,
    texts: HashMap<String, String>,
}

impl Policy {
    /// The policy of a service: the base rules, then `rules` of the service, then each operation's default, then the
    /// operator's `policy.yaml` if there is one.
    ///
    /// # Errors
    /// `BadRequest` where a rule does not parse, names an unknown rule, goes in a circle, or where the file names a
    /// rule the service does not have.
    pub fn for_ops<S>(ops: &[Op<S>], rules: &[(&str, &str)], policy_yaml: Option<&str>) -> Result<Self> {
        let mut texts: HashMap<String, String> = HashMap::new();
        for (name, rule) in BASE_RULES.iter().chain(rules) {
            texts.insert((*name).to_owned(), (*rule).to_owned());
        }
        for (name, rule) in op_rules(ops)? {
            texts.entry(name).or_insert(rule);
        }
        let mut parsed = HashMap::with_capacity(texts.len());
        for (name, text) in &texts {
            parsed.insert(name.clone(), parse::parse(text).map_err(|e| bad_rule(name, &e))?);
        }
        if let Some(yaml) = policy_yaml {
            for (name, expr, text) in overrides(yaml)? {
                if !parsed.contains_key(&name) {
                    return Err(Error::bad_request(format!("policy: there is no rule named '{name}'")));
                }
                parsed.insert(name.clone(), expr);
                texts.insert(name, text);
            }
        }
        check_references(&parsed)?;
        Ok(Policy { rules: parsed, texts })
    }

    /// Whether `auth` passes `rule` against `target`. An unknown rule is no.
    pub fn allows(&self, rule: &str, auth: &AuthContext, target: &Target) -> bool {
        let Some(expr) = self.rules.get(rule) else { return false };
        eval::eval(expr, &self.rules, auth, Some(target)) == Tri::Yes
    }

    /// Whether `auth` might pass `rule` against some target. An unknown rule is no.
    pub fn might_allow(&self, rule: &str, auth: &AuthContext) -> bool {
        let Some(expr) = self.rules.get(rule) else { return false };
        eval::eval(expr, &self.rules, auth, None) != Tri::No
    }

    /// Whether there is a rule of this name.
    pub fn has(&self, rule: &str) -> bool {
        self.rules.contains_key(rule)
    }

    /// The default policy file: every rule, commented out, for the operator to change.
    pub fn sample(&self) -> String {
        let mut file = String::from("# Rules that differ from these go here (oslo.policy syntax).\n");
        for (name, rule) in self.texts() {
            file.push_str(&format!("#\"{name}\": \"{rule}\"\n"));
        }
        file
    }

    /// All rules as text, sorted by name: the default policy file.
    pub fn texts(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<_> = self.texts.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        all.sort_unstable();
        all
    }
}

/// The rules of operations. Those that share a name share a rule: one that is written wins over what goes by the
/// method, and of the latter a writing operation over a reading one.
fn op_rules<S>(ops: &[Op<S>]) -> Result<HashMap<String, String>> {
    let mut rules: HashMap<String, (u8, String)> = HashMap::new();
    for info in ops.iter().map(|op| &op.info).filter(|info| !info.policy.is_empty()) {
        let reads = info.method == axum::http::Method::GET || info.method == axum::http::Method::HEAD;
        let rank = if info.default_rule.is_some() { 2 } else { u8::from(!reads) };
        match rules.get(info.policy.as_ref()) {
            Some((2, known)) if rank == 2 && known != info.rule() => {
                return Err(bad_rule(&info.policy, "two operations give it different defaults"));
            }
            Some((best, _)) if *best >= rank => {}
            _ => {
                rules.insert(info.policy.to_string(), (rank, info.rule().to_owned()));
            }
        }
    }
    Ok(rules.into_iter().map(|(name, (_, rule))| (name, rule)).collect())
}

fn bad_rule(name: &str, reason: &str) -> Error {
    Error::bad_request(format!("policy: rule '{name}': {reason}"))
}

fn overrides(yaml: &str) -> Result<Vec<(String, Expr, String)>> {
    let file: serde_norway::Value =
        serde_norway::from_str(yaml).map_err(|e| Error::bad_request(format!("policy: not YAML: {e}")))?;
    let map = match file {
        serde_norway::Value::Null => return Ok(Vec::new()),
        serde_norway::Value::Mapping(map) => map,
        _ => return Err(Error::bad_request("policy: the file must be a mapping of names to rules")),
    };
    let mut all = Vec::with_capacity(map.len());
    for (name, rule) in map {
        let name =
            name.as_str().ok_or_else(|| Error::bad_request("policy: a rule's name must be text"))?.to_owned();
        let text = match &rule {
            serde_norway::Value::String(text) => text.clone(),
            serde_norway::Value::Sequence(items) => legacy(items).map_err(|e| bad_rule(&name, e))?,
            _ => return Err(bad_rule(&name, "must be text or a list")),
        };
        let expr = parse::parse(&text).map_err(|e| bad_rule(&name, &e))?;
        all.push((name, expr, text));
    }
    Ok(all)
}

/// The old form: a list of alternatives, each one check or a list of checks that must all pass.
fn legacy(items: &[serde_norway::Value]) -> Result<String, &'static str> {
    const BAD: &str = "a list must hold checks or lists of checks";
    let mut alternatives = Vec::new();
    for item in items {
        alternatives.push(match item {
            serde_norway::Value::String(check) => format!("({check})"),
            serde_norway::Value::Sequence(checks) => {
                let checks: Option<Vec<&str>> = checks.iter().map(serde_norway::Value::as_str).collect();
                format!("({})", checks.ok_or(BAD)?.join(" and "))
            }
            _ => return Err(BAD),
        });
    }
    Ok(alternatives.join(" or "))
}

/// Every `rule:` must lead somewhere and none in a circle.
fn check_references(rules: &HashMap<String, Expr>) -> Result<()> {
    fn visit<'a>(
        name: &'a str,
        rules: &'a HashMap<String, Expr>,
        path: &mut Vec<&'a str>,
        done: &mut std::collections::HashSet<&'a str>,
    ) -> Result<()> {
        if done.contains(name) {
            return Ok(());
        }
        if path.contains(&name) {
            return Err(bad_rule(name, "refers to itself"));
        }
        let Some(expr) = rules.get(name) else {
            let user = path.last().copied().unwrap_or(name);
            return Err(bad_rule(user, &format!("refers to '{name}', which does not exist")));
        };
        path.push(name);
        for next in expr.references() {
            visit(next, rules, path, done)?;
        }
        path.pop();
        done.insert(name);
        Ok(())
    }
    let mut done = std::collections::HashSet::new();
    for name in rules.keys() {
        visit(name, rules, &mut Vec::new(), &mut done)?;
    }
    Ok(())
}

/// What a rule is checked against: attributes of the thing the operation is about.
#[derive(Debug, Clone, Default)]
pub struct Target {
    attributes: Vec<(Cow<'static, str>, Value)>,
    visible: bool,
    owner: Option<ProjectId>,
    owned_by_domain: Option<String>,
    missing: Option<String>,
    missing_code: &'static str,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Many(Vec<String>),
}

impl Target {
    /// No attributes: for what belongs to nobody. Its existence is no secret.
    pub fn none() -> Self {
        Target { visible: true, ..Target::default() }
    }

    /// A thing of a project: `project_id` and `tenant_id`. Foreign callers may not know that it exists.
    pub fn project(id: &ProjectId) -> Self {
        let text = id.as_str().to_owned();
        Target { owner: Some(id.clone()), ..Target::default() }
            .set("project_id", text.clone())
            .set("tenant_id", text)
    }

    /// A thing of a domain: `domain_id`.
    pub fn domain(id: &base::DomainId) -> Self {
        Target { owned_by_domain: Some(id.as_str().to_owned()), ..Target::default() }
            .set("domain_id", id.as_str())
    }

    /// The user it belongs to: `user_id`.
    #[must_use]
    pub fn user(self, id: &UserId) -> Self {
        self.set("user_id", id.as_str())
    }

    /// Another attribute; nested keys with dots (`target.user.id`).
    #[must_use]
    pub fn set(mut self, key: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.attributes.push((key.into(), Value::Text(value.into())));
        self
    }

    /// A boolean attribute, as Python writes it (`True`, `False`).
    #[must_use]
    pub fn flag(self, key: impl Into<Cow<'static, str>>, value: bool) -> Self {
        self.set(key, if value { "True" } else { "False" })
    }

    /// An attribute with several values; a check on it passes if one of them does.
    #[must_use]
    pub fn many(
        mut self,
        key: impl Into<Cow<'static, str>>,
        values: impl IntoIterator<Item = String>,
    ) -> Self {
        self.attributes.push((key.into(), Value::Many(values.into_iter().collect())));
        self
    }

    /// Whether the caller can see it although it is foreign (a shared network, a public image): then a denial is a 403.
    #[must_use]
    pub fn visible(mut self, visible: bool) -> Self {
        self.visible = self.visible || visible;
        self
    }

    /// The words of the 404 a foreign caller gets; use the same as for a thing that does not exist.
    #[must_use]
    pub fn missing(mut self, words: impl Into<String>) -> Self {
        self.missing = Some(words.into());
        self
    }

    /// The dialect's type of that 404 (Neutron: `"NetworkNotFound"`).
    #[must_use]
    pub fn missing_code(mut self, code: &'static str) -> Self {
        self.missing_code = code;
        self
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let key = key.strip_prefix("target.").filter(|k| self.find(k).is_some()).unwrap_or(key);
        self.find(key)
    }

    fn find(&self, key: &str) -> Option<&Value> {
        self.attributes.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Whether the caller may know that it exists.
    pub(crate) fn seen_by(&self, auth: &AuthContext) -> bool {
        use contract::Scope;
        if self.visible {
            return true;
        }
        match (&self.owner, &self.owned_by_domain) {
            (Some(owner), _) => auth.project_id() == Some(owner),
            (None, Some(domain)) => match &auth.scope {
                Scope::Domain { id, .. } => id.as_str() == domain,
                Scope::Project { domain_id, .. } => domain_id.as_str() == domain,
                _ => false,
            },
            (None, None) => true,
        }
    }

    pub(crate) fn hidden(&self) -> Error {
        let words = self.missing.clone().unwrap_or_else(|| "The resource could not be found.".to_owned());
        Error::not_found(words).code(self.missing_code)
    }
}

#[cfg(test)]
mod tests;
