//! The rule language of Keystone's mappings.
//!
//! A rule applies if all its `remote` conditions hold for the assertion; then its `local` entries, with `{n}` replaced
//! by the values of the n-th condition that selects values (one without `any_one_of` and `not_any_of`), say who the user
//! is and what the user gets. Rules that do not apply are passed over; those that do add up.
//!
//! Where Keystone would print a list of several values as Python source (a user named `['a', 'b']`), this refuses: only
//! `groups` and `group_ids` take several.

use std::collections::{BTreeMap, BTreeSet};

use base::{Error, Result};
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Most rules of a mapping, and most entries of each of its lists.
const MOST: usize = 1000;
/// Longest text in a rule.
const LONGEST: usize = 4096;

/// The rules of a mapping, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    remote: Vec<Remote>,
    local: Vec<Map<String, Value>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Remote {
    kind: String,
    test: Test,
    regex: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Present,
    AnyOneOf(Vec<String>),
    NotAnyOf(Vec<String>),
    Blacklist(Vec<String>),
    Whitelist(Vec<String>),
}

/// A domain by id or name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DomainRef {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

/// The domain of a user: by id, by name, or by both, as Keystone's rules may say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserDomain {
    /// Its id.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

impl UserDomain {
    /// How the domain is found: by its id where it has one.
    pub fn reference(&self) -> Option<DomainRef> {
        let by_name = || self.name.clone().map(DomainRef::Name);
        self.id.clone().map(DomainRef::Id).or_else(by_name)
    }
}

/// Whether the user is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKind {
    /// Known by the identity provider only.
    Ephemeral,
    /// A user of this cloud, who has the rights the tables give.
    Local,
}

/// Who the rules say the user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedUser {
    /// Id, unique at the identity provider.
    pub id: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Address.
    pub email: Option<String>,
    /// Domain of a local user.
    pub domain: UserDomain,
    /// Whether local.
    pub kind: UserKind,
}

/// A project with roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedProject {
    /// Its name.
    pub name: String,
    /// Its domain; none = that of the identity provider.
    pub domain: Option<DomainRef>,
    /// Names of the roles.
    pub roles: Vec<String>,
}

/// What the rules made of an assertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The user.
    pub user: MappedUser,
    /// Ids of groups.
    pub group_ids: BTreeSet<String>,
    /// Groups by name.
    pub groups: BTreeSet<(DomainRef, String)>,
    /// Projects with roles.
    pub projects: Vec<MappedProject>,
}

/// What an identity provider says about a user: values by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assertion(BTreeMap<String, Vec<String>>);

impl Assertion {
    /// The claims of a token. A claim `groups` answers to the names under which web servers in front of Keystone pass
    /// it too: `OIDC-groups`, `OIDC_CLAIM_groups`, `HTTP_OIDC_GROUPS`. What is in an object is `object.member`. Text is
    /// divided at `;`, as Keystone does.
    pub fn from_claims(claims: &Map<String, Value>) -> Self {
        let mut all = BTreeMap::new();
        for (name, value) in claims {
            gather(&mut all, name, value, 0);
        }
        Assertion(all)
    }

    /// Adds a value.
    pub fn add(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_owned()).or_default().push(value.to_owned());
    }

    /// The values of `name`.
    fn values(&self, name: &str) -> Option<&[String]> {
        if let Some(values) = self.0.get(name) {
            return Some(values);
        }
        let bare = ["OIDC-", "OIDC_CLAIM_", "HTTP_OIDC_CLAIM_", "HTTP_OIDC_"];
        let bare = bare.iter().find_map(|p| name.strip_prefix(p))?;
        if let Some(values) = self.0.get(bare) {
            return Some(values);
        }
        let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
        let wanted = plain(bare);
        self.0.iter().find(|(k, _)| plain(k) == wanted).map(|(_, v)| v.as_slice())
    }
}

fn gather(all: &mut BTreeMap<String, Vec<String>>, name: &str, value: &Value, depth: usize) {
    let mut add = |text: String| all.entry(name.to_owned()).or_default().push(text);
    match value {
        Value::Null => {}
        Value::Bool(flag) => add(flag.to_string()),
        Value::Number(number) => add(number.to_string()),
        Value::String(text) => text.split(';').for_each(|t| add(t.to_owned())),
        // The values of a list are whole: a group's name may have a semicolon.
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::String(text) => add(text.clone()),
                    Value::Bool(_) | Value::Number(_) => add(item.to_string()),
                    _ => {}
                }
            }
        }
        Value::Object(map) if depth < 4 => {
            for (key, value) in map {
                gather(all, &format!("{name}.{key}"), value, depth + 1);
            }
        }
        Value::Object(_) => {}
    }
}

// ---- reading

fn wrong(path: &str, what: &str) -> Error {
    Error::bad_request(format!("Invalid input for field '{path}': {what}"))
}

fn object<'a>(value: &'a Value, path: &str, known: &[&str]) -> Result<&'a Map<String, Value>> {
    let map = value.as_object().ok_or_else(|| wrong(path, "it is not of type 'object'"))?;
    match map.keys().find(|k| !known.contains(&k.as_str())) {
        Some(other) => {
            let shown: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
            Err(wrong(path, &format!("Additional properties are not allowed ('{shown}' was unexpected)")))
        }
        None => Ok(map),
    }
}

fn list<'a>(value: Option<&'a Value>, path: &str, least: usize) -> Result<&'a Vec<Value>> {
    let value = value.ok_or_else(|| wrong(path, "it is a required property"))?;
    let items = value.as_array().ok_or_else(|| wrong(path, "it is not of type 'array'"))?;
    if items.len() < least || items.len() > MOST {
        return Err(wrong(path, &format!("it must have {least} to {MOST} items")));
    }
    Ok(items)
}

fn text(value: &Value, path: &str) -> Result<String> {
    let text = value.as_str().ok_or_else(|| wrong(path, "it is not of type 'string'"))?;
    if text.len() > LONGEST {
        return Err(wrong(path, "it is too long"));
    }
    Ok(text.to_owned())
}

fn compiled(pattern: &str) -> Option<Regex> {
    Regex::builder()
        .configure(Regex::config().nfa_size_limit(Some(1 << 20)))
        .syntax(syntax::Config::new().nest_limit(64))
        .build(pattern)
        .ok()
}

impl Rules {
    /// Reads and checks the rules of a mapping.
    ///
    /// # Errors
    /// `BadRequest` naming the place.
    pub fn parse(rules: &Value) -> Result<Self> {
        let items = list(Some(rules), "mapping/rules", 1)?;
        let rules = items.iter().enumerate().map(|(i, rule)| {
            let path = format!("mapping/rules/{i}");
            let map = object(rule, &path, &["local", "remote"])?;
            let remote_path = format!("{path}/remote");
            let remote = list(map.get("remote"), &remote_path, 1)?;
            let remote =
                remote.iter().enumerate().map(|(i, r)| read_remote(r, &format!("{remote_path}/{i}")));
            let remote: Vec<Remote> = remote.collect::<Result<_>>()?;
            let selected =
                remote.iter().filter(|r| !matches!(r.test, Test::AnyOneOf(_) | Test::NotAnyOf(_))).count();
            let local_path = format!("{path}/local");
            let local = list(map.get("local"), &local_path, 0)?;
            let local = local
                .iter()
                .enumerate()
                .map(|(i, l)| read_local(l, &format!("{local_path}/{i}"), selected).cloned());
            Ok(Rule { remote, local: local.collect::<Result<_>>()? })
        });
        Ok(Rules(rules.collect::<Result<_>>()?))
    }

    /// What the rules make of an assertion.
    ///
    /// # Errors
    /// `Unauthenticated`: no rule fits, or what fits names no user, several values where one is meant, or a user of a
    /// kind there is not. The text is for the log, not for whom it concerns.
    pub fn apply(&self, assertion: &Assertion) -> Result<Mapped> {
        let mut out = Collected::default();
        let mut fits = false;
        for rule in &self.0 {
            let Some(values) = rule.select(assertion) else { continue };
            fits = true;
            for local in &rule.local {
                out.take(local, &values)?;
            }
        }
        if !fits {
            return Err(refused("no rule of the mapping fits the assertion"));
        }
        let user = out.user.ok_or_else(|| refused("the mapping names no user"))?;
        if user.name.is_none() && user.id.is_none() {
            return Err(refused("the mapping names no user"));
        }
        Ok(Mapped { user, group_ids: out.group_ids, groups: out.groups, projects: out.projects })
    }
}

fn refused(why: &str) -> Error {
    Error::unauthenticated(why)
}

fn read_remote(value: &Value, path: &str) -> Result<Remote> {
    const TESTS: [&str; 4] = ["any_one_of", "not_any_of", "blacklist", "whitelist"];
    let known = ["type", "regex", "any_one_of", "not_any_of", "blacklist", "whitelist"];
    let map = object(value, path, &known)?;
    let kind = map.get("type").ok_or_else(|| wrong(path, "'type' is a required property"))?;
    let kind = text(kind, &format!("{path}/type"))?;
    let regex = match map.get("regex") {
        None => false,
        Some(flag) => {
            flag.as_bool().ok_or_else(|| wrong(&format!("{path}/regex"), "it is not of type 'boolean'"))?
        }
    };
    let given: Vec<&str> = TESTS.into_iter().filter(|t| map.contains_key(*t)).collect();
    let name = match given.as_slice() {
        [] if map.contains_key("regex") => return Err(wrong(path, "'regex' needs a list of expressions")),
        [] => return Ok(Remote { kind, test: Test::Present, regex: false }),
        [name] => *name,
        _ => return Err(wrong(path, "it may have one of any_one_of, not_any_of, blacklist, whitelist only")),
    };
    let place = format!("{path}/{name}");
    let items = list(map.get(name), &place, 0)?;
    let values: Vec<String> = items.iter().map(|v| text(v, &place)).collect::<Result<_>>()?;
    if regex && values.iter().any(|v| compiled(v).is_none()) {
        return Err(wrong(&place, "it is no regular expression that is understood"));
    }
    let test = match name {
        "any_one_of" => Test::AnyOneOf(values),
        "not_any_of" => Test::NotAnyOf(values),
        "blacklist" => Test::Blacklist(values),
        _ => Test::Whitelist(values),
    };
    Ok(Remote { kind, test, regex })
}

fn read_local<'a>(value: &'a Value, path: &str, selected: usize) -> Result<&'a Map<String, Value>> {
    let local = object(value, path, &["user", "group", "groups", "group_ids", "domain", "projects"])?;
    places(value, path, selected)?;
    let texts = |map: &Map<String, Value>, path: &str, names: &[&str]| -> Result<()> {
        for name in names {
            if let Some(value) = map.get(*name) {
                text(value, &format!("{path}/{name}"))?;
            }
        }
        Ok(())
    };
    if let Some(user) = local.get("user") {
        let path = format!("{path}/user");
        let user = object(user, &path, &["id", "name", "email", "domain", "type"])?;
        texts(user, &path, &["id", "name", "email", "type"])?;
        if let Some(kind) = user.get("type").and_then(Value::as_str)
            && !["ephemeral", "local"].contains(&kind)
        {
            return Err(wrong(&format!("{path}/type"), "it is not one of ['ephemeral', 'local']"));
        }
        if let Some(domain) = user.get("domain") {
            let path = format!("{path}/domain");
            texts(object(domain, &path, &["id", "name"])?, &path, &["id", "name"])?;
        }
    }
    if let Some(group) = local.get("group") {
        let path = format!("{path}/group");
        let group = object(group, &path, &["id", "name", "domain"])?;
        texts(group, &path, &["id", "name"])?;
        read_domain(group.get("domain"), &format!("{path}/domain"))?;
        let named = group.contains_key("name") && group.contains_key("domain");
        if group.contains_key("id") == named || (group.contains_key("id") && group.len() > 1) {
            return Err(wrong(&path, "it must have an id, or a name and a domain"));
        }
    }
    texts(local, path, &["groups", "group_ids"])?;
    read_domain(local.get("domain"), &format!("{path}/domain"))?;
    if local.contains_key("groups") && !local.contains_key("domain") {
        return Err(wrong(path, "'groups' needs a 'domain' beside it"));
    }
    if let Some(projects) = local.get("projects") {
        let path = format!("{path}/projects");
        for (i, project) in list(Some(projects), &path, 0)?.iter().enumerate() {
            let path = format!("{path}/{i}");
            let project = object(project, &path, &["name", "domain", "roles"])?;
            let name = project.get("name").ok_or_else(|| wrong(&path, "'name' is a required property"))?;
            text(name, &format!("{path}/name"))?;
            read_domain(project.get("domain"), &format!("{path}/domain"))?;
            let path = format!("{path}/roles");
            for (i, role) in list(project.get("roles"), &path, 1)?.iter().enumerate() {
                let path = format!("{path}/{i}");
                let role = object(role, &path, &["name"])?;
                let name = role.get("name").ok_or_else(|| wrong(&path, "'name' is a required property"))?;
                text(name, &format!("{path}/name"))?;
            }
        }
    }
    Ok(local)
}

fn read_domain(value: Option<&Value>, path: &str) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let domain = object(value, path, &["id", "name"])?;
    if domain.len() != 1 {
        return Err(wrong(path, "it must have an id or a name"));
    }
    domain.values().try_for_each(|v| text(v, path).map(|_| ()))
}

/// All places `{n}` in the texts of a local entry must exist.
fn places(value: &Value, path: &str, selected: usize) -> Result<()> {
    match value {
        Value::String(text) => match template(text) {
            None => Err(wrong(path, "a brace stands alone, or is around something else than a number")),
            Some(parts) => match parts.iter().find(|p| matches!(p, Part::Place(n) if *n >= selected)) {
                Some(Part::Place(n)) => {
                    Err(wrong(path, &format!("there is no value for '{{{n}}}' in 'remote'")))
                }
                _ => Ok(()),
            },
        },
        Value::Array(items) => items.iter().try_for_each(|v| places(v, path, selected)),
        Value::Object(map) => map.iter().try_for_each(|(k, v)| places(v, &format!("{path}/{k}"), selected)),
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Place(usize),
}

/// Python's `str.format` as far as mappings use it: `{0}`, `{{`, `}}`.
fn template(text: &str) -> Option<Vec<Part>> {
    let (mut parts, mut literal) = (Vec::new(), String::new());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '{' | '}' if rest.peek() == Some(&c) => {
                rest.next();
                literal.push(c);
            }
            '{' => {
                let mut number = String::new();
                loop {
                    match rest.next()? {
                        '}' => break,
                        digit if digit.is_ascii_digit() && number.len() < 6 => number.push(digit),
                        _ => return None,
                    }
                }
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::Place(number.parse().ok()?));
            }
            '}' => return None,
            other => literal.push(other),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    Some(parts)
}

// ---- applying

impl Rule {
    /// The selected values, if all conditions hold.
    fn select(&self, assertion: &Assertion) -> Option<Vec<Vec<String>>> {
        let mut selected = Vec::new();
        for remote in &self.remote {
            let values = assertion.values(&remote.kind).filter(|v| !v.is_empty())?;
            match &remote.test {
                Test::Present => selected.push(values.to_vec()),
                Test::AnyOneOf(wanted) => {
                    if matching(wanted, values, remote.regex).is_empty() {
                        return None;
                    }
                }
                Test::NotAnyOf(unwanted) => {
                    if !matching(unwanted, values, remote.regex).is_empty() {
                        return None;
                    }
                }
                Test::Blacklist(unwanted) => {
                    let out = matching(unwanted, values, remote.regex);
                    selected.push(values.iter().filter(|v| !out.contains(v)).cloned().collect());
                }
                Test::Whitelist(wanted) => {
                    selected.push(matching(wanted, values, remote.regex).into_iter().cloned().collect());
                }
            }
        }
        Some(selected)
    }
}

fn matching<'a>(wanted: &[String], values: &'a [String], regex: bool) -> Vec<&'a String> {
    if regex {
        // What could be stored compiles; what does not, matches nothing.
        let all: Vec<Regex> = wanted.iter().filter_map(|w| compiled(w)).collect();
        values.iter().filter(|v| all.iter().any(|r| r.is_match(v.as_str()))).collect()
    } else {
        values.iter().filter(|v| wanted.contains(v)).collect()
    }
}

#[derive(Default)]
struct Collected {
    user: Option<MappedUser>,
    group_ids: BTreeSet<String>,
    groups: BTreeSet<(DomainRef, String)>,
    projects: Vec<MappedProject>,
}

/// A text with its places filled; several values are refused.
fn single(value: &Value, values: &[Vec<String>]) -> Result<String> {
    let mut out = String::new();
    for part in template(value.as_str().unwrap_or_default()).unwrap_or_default() {
        match part {
            Part::Text(text) => out.push_str(&text),
            Part::Place(n) => match values.get(n).map(Vec::as_slice) {
                Some([one]) => out.push_str(one),
                Some(several) => {
                    let count = several.len();
                    return Err(refused(&format!("{count} values where the mapping wants one (place {n})")));
                }
                None => return Err(refused("a place without a value")),
            },
        }
    }
    Ok(out)
}

/// All values where the text is a single place, else the one text.
fn several(value: &Value, values: &[Vec<String>]) -> Result<Vec<String>> {
    match template(value.as_str().unwrap_or_default()).unwrap_or_default().as_slice() {
        [Part::Place(n)] => Ok(values.get(*n).cloned().unwrap_or_default()),
        [Part::Text(text)] => {
            // Keystone also takes a list written as text: ["a", "b"].
            let written = serde_json::from_str::<Vec<String>>(text).ok();
            Ok(written.unwrap_or_else(|| vec![text.clone()]))
        }
        _ => Ok(vec![single(value, values)?]),
    }
}

fn domain(value: Option<&Value>, values: &[Vec<String>]) -> Result<Option<DomainRef>> {
    let Some(map) = value.and_then(Value::as_object) else { return Ok(None) };
    if let Some(id) = map.get("id") {
        return single(id, values).map(|t| Some(DomainRef::Id(t)));
    }
    map.get("name").map(|name| single(name, values).map(DomainRef::Name)).transpose()
}

impl Collected {
    fn take(&mut self, local: &Map<String, Value>, values: &[Vec<String>]) -> Result<()> {
        let optional = |map: &Map<String, Value>, name: &str| {
            let text = map.get(name).map(|v| single(v, values)).transpose()?;
            Ok::<_, Error>(text.filter(|t| !t.is_empty()))
        };
        // The first rule that names a user decides, as in Keystone.
        if let (Some(user), None) = (local.get("user").and_then(Value::as_object), &self.user) {
            let kind = match optional(user, "type")?.as_deref() {
                None | Some("ephemeral") => UserKind::Ephemeral,
                Some("local") => UserKind::Local,
                Some(_) => return Err(refused("a type of user there is not")),
            };
            let domain = match user.get("domain").and_then(Value::as_object) {
                Some(domain) => UserDomain { id: optional(domain, "id")?, name: optional(domain, "name")? },
                None => UserDomain::default(),
            };
            self.user = Some(MappedUser {
                id: optional(user, "id")?,
                name: optional(user, "name")?,
                email: optional(user, "email")?,
                domain,
                kind,
            });
        }
        if let Some(group) = local.get("group").and_then(Value::as_object) {
            if let Some(id) = optional(group, "id")? {
                self.group_ids.insert(id);
            } else if let (Some(name), Some(domain)) =
                (optional(group, "name")?, domain(group.get("domain"), values)?)
            {
                self.groups.insert((domain, name));
            }
        }
        if let (Some(groups), Some(domain)) = (local.get("groups"), domain(local.get("domain"), values)?) {
            for name in several(groups, values)? {
                self.groups.insert((domain.clone(), name));
            }
        }
        if let Some(ids) = local.get("group_ids") {
            self.group_ids.extend(several(ids, values)?);
        }
        for project in local.get("projects").and_then(Value::as_array).into_iter().flatten() {
            let Some(map) = project.as_object() else { continue };
            let roles = map.get("roles").and_then(Value::as_array).into_iter().flatten();
            let roles = roles.filter_map(|r| r.get("name")).map(|name| single(name, values));
            let roles = roles.collect::<Result<_>>()?;
            let Some(name) = optional(map, "name")? else { continue };
            self.projects.push(MappedProject { name, domain: domain(map.get("domain"), values)?, roles });
        }
        Ok(())
    }
}

/// The shape of rules, for documents.
pub fn schema() -> Value {
    let text = json!({"type": "string"});
    let domain =
        json!({"type": "object", "additionalProperties": false, "properties": {"id": text, "name": text}});
    let texts = json!({"type": "array", "items": text});
    let role = json!({"type": "object", "additionalProperties": false, "required": ["name"], "properties": {"name": text}});
    let project = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "roles"],
        "properties": {"name": text, "domain": domain, "roles": {"type": "array", "minItems": 1, "items": role}},
    });
    let user = json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "id": text, "name": text, "email": text, "domain": domain, "type": {"type": "string", "enum": ["ephemeral", "local"]},
        },
    });
    let group = json!({"type": "object", "additionalProperties": false, "properties": {"id": text, "name": text, "domain": domain}});
    let local = json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "user": user, "group": group, "groups": text, "group_ids": text, "domain": domain,
            "projects": {"type": "array", "items": project},
        },
    });
    let remote = json!({
        "type": "object", "additionalProperties": false, "required": ["type"],
        "properties": {
            "type": text, "regex": {"type": "boolean"},
            "any_one_of": texts, "not_any_of": texts, "blacklist": texts, "whitelist": texts,
        },
    });
    json!({
        "type": "array", "minItems": 1,
        "items": {
            "type": "object", "additionalProperties": false, "required": ["local", "remote"],
            "properties": {
                "local": {"type": "array", "items": local},
                "remote": {"type": "array", "minItems": 1, "items": remote},
            },
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims() -> Assertion {
        let claims = json!({
            "sub": "4711", "preferred_username": "ada", "email": "ada@example.org", "groups": ["dev", "ops", "a;b"],
            "realm_access": {"roles": ["uma"]}, "legacy": "one;two", "email_verified": true, "nothing": [],
        });
        Assertion::from_claims(claims.as_object().unwrap())
    }

    fn apply(rules: Value) -> Result<Mapped> {
        Rules::parse(&rules).unwrap().apply(&claims())
    }

    fn user() -> Value {
        json!({"local": [{"user": {"id": "{0}", "name": "{1}"}}], "remote": [{"type": "sub"}, {"type": "preferred_username"}]})
    }

    fn group_names(rule: Value) -> Vec<String> {
        let mapped = apply(json!([user(), rule])).unwrap();
        mapped.groups.into_iter().map(|(_, name)| name).collect()
    }

    fn listing(test: Value) -> Vec<String> {
        let mut remote = json!({"type": "groups"});
        remote.as_object_mut().unwrap().extend(test.as_object().unwrap().clone());
        group_names(json!({"local": [{"groups": "{0}", "domain": {"id": "default"}}], "remote": [remote]}))
    }

    #[test]
    fn values_are_put_into_their_places() {
        let mapped = apply(json!([{
            "local": [
                {"user": {"id": "{0}", "name": "x-{1}-{{y}}", "email": "{2}"}},
                {"group": {"id": "g1"}}, {"group": {"name": "of-{1}", "domain": {"name": "Partners"}}},
                {"projects": [{"name": "home of {1}", "roles": [{"name": "member"}, {"name": "reader"}]}]},
            ],
            "remote": [
                {"type": "OIDC-sub"}, {"type": "HTTP_OIDC_PREFERRED_USERNAME"}, {"type": "email"},
                {"type": "groups", "any_one_of": ["dev"]},
            ],
        }]))
        .unwrap();
        assert_eq!(mapped.user.id.as_deref(), Some("4711"));
        assert_eq!(mapped.user.name.as_deref(), Some("x-ada-{y}"));
        assert_eq!(mapped.user.email.as_deref(), Some("ada@example.org"));
        assert_eq!(mapped.user.kind, UserKind::Ephemeral);
        assert_eq!(mapped.group_ids, BTreeSet::from(["g1".to_owned()]));
        assert_eq!(
            mapped.groups,
            BTreeSet::from([(DomainRef::Name("Partners".into()), "of-ada".to_owned())])
        );
        let project = mapped.projects.first().unwrap();
        assert_eq!((project.name.as_str(), project.roles.len()), ("home of ada", 2));
    }

    #[test]
    fn a_users_domain_has_an_id_a_name_or_both() {
        let of = |domain: Value| {
            let user = json!({"name": "u", "domain": domain});
            apply(json!([{"local": [{"user": user}], "remote": [{"type": "sub"}]}])).unwrap().user.domain
        };
        let some = |text: &str| Some(text.to_owned());
        let both = of(json!({"id": "{0}", "name": "n"}));
        assert_eq!(both, UserDomain { id: some("4711"), name: some("n") });
        assert_eq!(both.reference(), Some(DomainRef::Id("4711".into())));
        assert_eq!(of(json!({"name": "n"})).reference(), Some(DomainRef::Name("n".into())));
        assert_eq!(of(json!({})).reference(), None);
        let wrong =
            json!([{"local": [{"user": {"name": "u", "domain": {"x": "y"}}}], "remote": [{"type": "sub"}]}]);
        assert!(Rules::parse(&wrong).unwrap_err().public().contains("local/0/user/domain"));
    }

    #[test]
    fn conditions_are_keystones() {
        let one = |remote: Value| {
            let rule = json!({"local": [{"group": {"id": "g"}}], "remote": [remote]});
            !apply(json!([user(), rule])).unwrap().group_ids.is_empty()
        };
        for (remote, fits) in [
            (json!({"type": "groups"}), true),
            (json!({"type": "absent"}), false),
            (json!({"type": "nothing"}), false),
            (json!({"type": "groups", "any_one_of": ["dev", "x"]}), true),
            (json!({"type": "groups", "any_one_of": ["de"]}), false),
            (json!({"type": "groups", "any_one_of": ["de"], "regex": true}), true),
            (json!({"type": "groups", "any_one_of": ["^e"], "regex": true}), false),
            (json!({"type": "groups", "not_any_of": ["x"]}), true),
            (json!({"type": "groups", "not_any_of": ["ops"]}), false),
            (json!({"type": "groups", "not_any_of": ["^o.s$"], "regex": true}), false),
            (json!({"type": "absent", "not_any_of": ["x"]}), false),
            (json!({"type": "realm_access.roles", "any_one_of": ["uma"]}), true),
            (json!({"type": "email_verified", "any_one_of": ["true"]}), true),
            (json!({"type": "legacy", "any_one_of": ["two"]}), true),
        ] {
            assert_eq!(one(remote.clone()), fits, "{remote}");
        }
        assert_eq!(listing(json!({})), ["a;b", "dev", "ops"]);
        assert_eq!(listing(json!({"whitelist": ["dev", "other"]})), ["dev"]);
        assert_eq!(listing(json!({"blacklist": ["dev"]})), ["a;b", "ops"]);
        assert_eq!(listing(json!({"blacklist": ["^d", "o"], "regex": true})), ["a;b"]);
        assert_eq!(listing(json!({"whitelist": ["^(dev|ops)$"], "regex": true})), ["dev", "ops"]);
        assert!(listing(json!({"whitelist": []})).is_empty());
        let fixed = json!({"local": [{"groups": "[\"p\", \"q\"]", "domain": {"id": "d"}}], "remote": [{"type": "sub"}]});
        assert_eq!(group_names(fixed), ["p", "q"]);
    }

    #[test]
    fn nobody_comes_in_by_accident() {
        let named =
            |name: &str, of: &str| json!([{"local": [{"user": {"name": name}}], "remote": [{"type": of}]}]);
        // No rule fits; a rule fits and names nobody; several values for one name.
        for rules in [
            named("{0}", "absent"),
            json!([{"local": [{"group": {"id": "g"}}], "remote": [{"type": "sub"}]}]),
            json!([{"local": [], "remote": [{"type": "sub"}]}]),
            named("{0}", "groups"),
            named("x{0}", "legacy"),
        ] {
            assert_eq!(apply(rules.clone()).unwrap_err().kind(), base::Kind::Unauthenticated, "{rules}");
        }
        // The first rule that names a user decides.
        let rules = json!([
            {"local": [{"user": {"name": "first"}}], "remote": [{"type": "sub"}]},
            {"local": [{"user": {"name": "second", "type": "local"}}], "remote": [{"type": "sub"}]},
        ]);
        let user = apply(rules).unwrap().user;
        assert_eq!((user.name.as_deref(), user.kind), (Some("first"), UserKind::Ephemeral));
    }

    #[test]
    fn malformed_rules_are_refused_with_their_place() {
        let remote = json!([{"type": "sub"}]);
        let local = json!([{"user": {"name": "{0}"}}]);
        for (rules, place) in [
            (json!({}), "mapping/rules"),
            (json!([]), "mapping/rules"),
            (json!([{"remote": remote}]), "mapping/rules/0/local"),
            (json!([{"local": local}]), "mapping/rules/0/remote"),
            (json!([{"local": local, "remote": []}]), "mapping/rules/0/remote"),
            (json!([{"local": local, "remote": remote, "x": 1}]), "mapping/rules/0'"),
            (json!([{"local": local, "remote": [{"type": 1}]}]), "remote/0/type"),
            (json!([{"local": local, "remote": [{}]}]), "remote/0"),
            (
                json!([{"local": local, "remote": [{"type": "a", "any_one_of": ["b"], "whitelist": []}]}]),
                "remote/0",
            ),
            (
                json!([{"local": local, "remote": [{"type": "a", "any_one_of": ["("], "regex": true}]}]),
                "any_one_of",
            ),
            (json!([{"local": local, "remote": [{"type": "a", "any_one_of": ["b"]}]}]), "local/0/user/name"),
            (json!([{"local": [{"user": {"name": "{1}"}}], "remote": remote}]), "local/0/user/name"),
            (json!([{"local": [{"user": {"name": "{a}"}}], "remote": remote}]), "local/0/user/name"),
            (json!([{"local": [{"user": {"name": "{0.__class__}"}}], "remote": remote}]), "user/name"),
            (json!([{"local": [{"user": {"type": "root"}}], "remote": remote}]), "user/type"),
            (json!([{"local": [{"group": {"name": "g"}}], "remote": remote}]), "group"),
            (json!([{"local": [{"groups": "{0}"}], "remote": remote}]), "local/0"),
            (json!([{"local": [{"projects": [{"name": "p"}]}], "remote": remote}]), "projects/0/roles"),
            (
                json!([{"local": [{"projects": [{"name": "p", "roles": []}]}], "remote": remote}]),
                "projects/0/roles",
            ),
        ] {
            let error = Rules::parse(&rules).unwrap_err();
            assert_eq!(error.kind(), base::Kind::BadRequest);
            assert!(error.public().contains(place), "{rules}: {}", error.public());
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(name in "[{}0-9a]{0,12}", kind in "[a-z-]{0,6}", value in ".{0,20}") {
            let rules = json!([{"local": [{"user": {"name": name}}], "remote": [{"type": kind}]}]);
            if let Ok(rules) = Rules::parse(&rules) {
                let mut assertion = Assertion::default();
                assertion.add(&kind, &value);
                let _ = rules.apply(&assertion);
            }
        }
    }
}
