//! Scenarios: what is done, as data.
//!
//! A scenario is a list of steps. A step makes, finds, calls, awaits, checks or removes something, for one item or many:
//! `count` of them, spread `on` the items of another step, or one for `each` of them. Items remember what they belong to, so
//! that `{network.id}` in the body of a port is the id of the port's own network. What a step needs follows from that; if it
//! failed, the step is skipped for that item and says because of what.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use osclient::journal::Thing;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Scenarios that are built in, by name.
pub const BUILTIN: [(&str, &str); 2] =
    [("default", include_str!("../data/default.yaml")), ("control", include_str!("../data/control.yaml"))];

/// A scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub about: String,
    /// Values that steps refer to (`{guests}`) and that `--set` overrides.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
    /// How many items of a step are worked on at once.
    #[serde(default = "parallel")]
    pub parallel: usize,
    /// Seconds that a call may take, unless the step says otherwise.
    #[serde(default = "call_limit")]
    pub call_limit: f64,
    /// Seconds that a change may take, unless the step says otherwise.
    #[serde(default = "change_limit")]
    pub change_limit: f64,
    /// What is done, in this order. What was made is removed at the end.
    pub steps: Vec<Step>,
}

/// Name and value of a condition: `outside`, `boot volume`.
fn condition(when: &str) -> (&str, Option<&str>) {
    let when = when.trim_matches(['{', '}']);
    when.split_once(' ').map_or((when, None), |(name, value)| (name, Some(value)))
}

fn parallel() -> usize {
    8
}

fn call_limit() -> f64 {
    30.0
}

fn change_limit() -> f64 {
    600.0
}

/// A step; exactly one of `make`, `find`, `call`, `await`, `check`, `remove` says what it does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Its name, by which others refer to it.
    pub id: String,
    /// Makes one of these.
    pub make: Option<Thing>,
    /// Finds something that is there.
    pub find: Option<Find>,
    /// Any other call.
    pub call: Option<Call>,
    /// Waits for the items of another step.
    #[serde(rename = "await")]
    pub wait: Option<String>,
    /// Until they have this status.
    pub until: Option<String>,
    /// Checks something.
    pub check: Option<Check>,
    /// Removes the items of another step before the end.
    pub remove: Option<String>,
    /// How many (a number, or a value of `set`).
    pub count: Option<Value>,
    /// Spread on the items of that step.
    pub on: Option<String>,
    /// One for each item of that step.
    pub each: Option<String>,
    /// What must have gone well besides: the item of that step with the same number.
    pub needs: Option<String>,
    /// Only if this value of `set` is true (`outside`) or is that one (`boot volume`), or the catalog has `service TYPE`.
    pub when: Option<String>,
    /// What is sent.
    pub body: Value,
    /// What is sent besides, depending on values of `set`.
    pub also: Vec<Also>,
    /// Seconds it may take.
    pub limit: Option<f64>,
    /// How many items at once.
    pub parallel: Option<usize>,
}

/// A part of a body.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    /// As of a step, without services.
    pub when: String,
    /// Fields of the body.
    pub body: Map<String, Value>,
}

/// What is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Find {
    /// The image named `{image}`, or one that fits.
    Image,
    /// The flavor named `{flavor}`, or the smallest that holds the image.
    Flavor,
    /// The external network named `{external}`, or the first.
    ExternalNetwork,
    /// The availability zones that take servers.
    Zones,
}

/// A call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Which service (`network`).
    pub service: String,
    /// How it is called in reports.
    pub op: String,
    /// Method.
    #[serde(default = "get")]
    pub method: String,
    /// Path after the version.
    pub path: String,
}

fn get() -> String {
    "GET".into()
}

/// A check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The catalog has the services that a cloud needs.
    Catalogue,
    /// A token can be had.
    Token,
    /// Every service answers a list.
    Lists,
    /// A guest with a floating IP takes a login.
    Reach,
    /// A guest behind another one does.
    Login,
    /// A guest has its user data and its metadata.
    Metadata,
    /// A guest reaches the world.
    Outside,
    /// Guests reach each other: TCP, UDP, ICMP.
    Matrix,
    /// How much goes through between two guests.
    Throughput,
    /// CPU and disk of a guest.
    Bench,
    /// A load balancer keeps its contract.
    Balancer,
}

impl Check {
    /// Whether it needs guests that run.
    pub fn in_guests(self) -> bool {
        !matches!(self, Check::Catalogue | Check::Token | Check::Lists)
    }
}

impl Step {
    /// Steps it refers to by name.
    pub(crate) fn references(&self) -> impl Iterator<Item = &str> {
        [&self.wait, &self.remove, &self.on, &self.each, &self.needs]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// Steps among `ids` that its body or path names.
    fn named(&self, ids: &BTreeSet<String>) -> BTreeSet<String> {
        let mut named = crate::template::steps(&self.body, ids);
        for also in &self.also {
            named.extend(also.body.values().flat_map(|v| crate::template::steps(v, ids)));
        }
        if let Some(call) = &self.call {
            named.extend(crate::template::steps(&Value::from(call.path.as_str()), ids));
        }
        named
    }

    /// All its conditions on values of `set`, as name and value.
    fn conditions(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let own = self.when.as_deref().filter(|w| !w.starts_with("service "));
        own.into_iter().chain(self.also.iter().map(|a| a.when.as_str())).map(condition)
    }

    fn deeds(&self) -> usize {
        [
            self.make.is_some(),
            self.find.is_some(),
            self.call.is_some(),
            self.wait.is_some(),
            self.check.is_some(),
            self.remove.is_some(),
        ]
        .into_iter()
        .filter(|b| *b)
        .count()
    }
}

impl Scenario {
    /// Reads one; an error names the step.
    pub fn parse(text: &str) -> Result<Scenario> {
        let scenario: Scenario = serde_norway::from_str(text).context("the scenario cannot be read")?;
        let mut known = BTreeSet::new();
        for step in &scenario.steps {
            let id = &step.id;
            if id.is_empty() || !id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            {
                bail!("step {id:?}: an id is made of a-z, 0-9 and -");
            }
            if step.deeds() != 1 {
                bail!("step {id}: exactly one of make, find, call, await, check, remove");
            }
            for other in step.references() {
                if !known.contains(other) {
                    bail!("step {id}: there is no step {other:?} before it");
                }
            }
            if step.each.is_some() && (step.count.is_some() || step.on.is_some()) {
                bail!("step {id}: each has no count and no on");
            }
            if step.make.is_none() && !step.also.is_empty() {
                bail!("step {id}: also is for what is made");
            }
            if let Some((name, _)) =
                step.also.iter().map(|a| condition(&a.when)).find(|(n, _)| !scenario.set.contains_key(*n))
            {
                bail!("step {id}: also: there is no value {name:?} in set");
            }
            if step.wait.is_some() && step.until.is_none() {
                bail!("step {id}: await needs until");
            }
            if let Some(limit) = step.limit.filter(|l| !(*l > 0.0 && *l < 1e6)) {
                bail!("step {id}: limit {limit} is no number of seconds");
            }
            if !known.insert(id.clone()) {
                bail!("step {id}: there is another one of that name");
            }
        }
        for (name, limit) in [("call_limit", scenario.call_limit), ("change_limit", scenario.change_limit)] {
            if !(limit > 0.0 && limit < 1e6) {
                bail!("{name}: {limit} is no number of seconds");
            }
        }
        Ok(scenario)
    }

    /// One that is built in.
    pub fn builtin(name: &str) -> Result<Scenario> {
        let found = BUILTIN.iter().find(|(n, _)| *n == name);
        let known = || BUILTIN.map(|(n, _)| n).join(", ");
        Scenario::parse(
            found.with_context(|| format!("no scenario {name:?} is built in; there are: {}", known()))?.1,
        )
    }

    /// Overrides a value (`guests=8`).
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (name, text) =
            assignment.split_once('=').with_context(|| format!("{assignment:?}: NAME=VALUE"))?;
        let Some(old) = self.set.get_mut(name) else {
            let known: Vec<_> = self.set.keys().map(String::as_str).collect();
            bail!("scenario {} has no value {name:?}; there are: {}", self.name, known.join(", "));
        };
        let parsed: Value = serde_norway::from_str(text).unwrap_or_else(|_| Value::from(text));
        let fits = old.is_null()
            || old.is_string()
            || (old.is_number() && parsed.is_number())
            || (old.is_boolean() && parsed.is_boolean());
        if !fits {
            bail!("{name}: {text:?} is not of the kind of {old}");
        }
        let parsed = if old.is_string() { Value::from(text) } else { parsed };
        // Of a value that others are compared with, only those are of any use.
        let compared: BTreeSet<&str> = self
            .steps
            .iter()
            .flat_map(Step::conditions)
            .filter(|(n, _)| *n == name)
            .filter_map(|(_, v)| v)
            .collect();
        if !compared.is_empty() && !compared.contains(text) {
            bail!("{name}: {text:?} is none of {}", compared.into_iter().collect::<Vec<_>>().join(", "));
        }
        *old = parsed;
        Ok(())
    }

    /// Why a condition on a value of `set` does not hold.
    pub(crate) fn unmet(&self, when: &str) -> Option<String> {
        let (name, wanted) = condition(when);
        let value = self.set.get(name).cloned().unwrap_or_default();
        if let Some(wanted) = wanted {
            let is = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            return (is != wanted).then(|| format!("{name} is {is}"));
        }
        let off = matches!(&value, Value::Null | Value::Bool(false)) || value == 0 || value == "";
        off.then(|| format!("{name} is off"))
    }

    /// What a step sends.
    pub(crate) fn body(&self, step: &Step) -> Value {
        let mut body = step.body.clone();
        for also in step.also.iter().filter(|a| self.unmet(&a.when).is_none()) {
            match body.as_object_mut() {
                Some(body) => body.extend(also.body.clone()),
                None => body = also.body.clone().into(),
            }
        }
        body
    }

    /// Steps whose items appear in bodies and paths of others.
    pub(crate) fn referred(&self) -> BTreeSet<String> {
        let ids: BTreeSet<String> = self.steps.iter().map(|s| s.id.clone()).collect();
        self.steps.iter().flat_map(|s| s.named(&ids)).collect()
    }

    /// Only steps chosen by name, and what they need.
    pub fn only(&mut self, wanted: &[String]) -> Result<()> {
        let mut needed: BTreeSet<String> = BTreeSet::new();
        for name in wanted {
            if !self.steps.iter().any(|s| s.id == *name) {
                bail!("scenario {} has no step {name:?}", self.name);
            }
            needed.insert(name.clone());
        }
        let ids: BTreeSet<String> = self.steps.iter().map(|s| s.id.clone()).collect();
        let last = self.steps.iter().rposition(|s| needed.contains(&s.id)).unwrap_or(0);
        let mut before = 0;
        // A step may be found to be needed by one that stands before it.
        while before != needed.len() {
            before = needed.len();
            for step in self.steps.iter().take(last + 1) {
                let mut named: BTreeSet<String> = step.references().map(str::to_owned).collect();
                named.extend(step.named(&ids));
                // Whoever waits for a thing, or gives it its rules, is needed where the thing is.
                let support = match (&step.wait, &step.call) {
                    (Some(thing), _) => needed.contains(thing),
                    (None, Some(_)) => named.iter().any(|s| needed.contains(s)),
                    (None, None) => false,
                };
                if !needed.contains(&step.id) && !support {
                    continue;
                }
                needed.insert(step.id.clone());
                needed.extend(named);
                if step.check.is_some_and(Check::in_guests) {
                    // A way in, and a login: that is when the agent gets there.
                    let way = |s: &&Step| {
                        matches!(s.make, Some(Thing::Keypair | Thing::FloatingIp))
                            || matches!(s.check, Some(Check::Reach | Check::Login))
                    };
                    needed.extend(self.steps.iter().filter(way).map(|s| s.id.clone()));
                }
            }
        }
        self.steps.retain(|s| needed.contains(&s.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies_and_steps_depend_on_values() {
        for (name, _) in BUILTIN {
            let mut scenario = Scenario::builtin(name).unwrap();
            let sent = |s: &Scenario| s.body(s.steps.iter().find(|s| s.id == "guest").unwrap());
            assert_eq!(sent(&scenario)["imageRef"], "{image.id}");
            assert_eq!(scenario.unmet("boot volume").unwrap(), "boot is image");
            for (boot, source) in [("volume", "volume"), ("implicit-volume", "image")] {
                scenario.set(&format!("boot={boot}")).unwrap();
                let body = sent(&scenario);
                assert_eq!((&body["imageRef"], &body["flavorRef"]), (&Value::Null, &json!("{flavor.id}")));
                assert_eq!(body["block_device_mapping_v2"][0]["source_type"], source);
            }
            let refused = scenario.set("boot=floppy").unwrap_err().to_string();
            assert_eq!(refused, "boot: \"floppy\" is none of image, implicit-volume, volume");
            assert_eq!(scenario.set["boot"], "implicit-volume");
        }
    }

    #[test]
    fn what_is_sent_besides_needs_a_value_and_a_thing() {
        let step = |what: &str, when: &str| {
            format!(
                "name: x\nset: {{a: 2}}\nsteps:\n- {{id: x, {what}, also: [{{when: {when}, body: {{b: 1}}}}]}}\n"
            )
        };
        let scenario = Scenario::parse(&step("make: network", "a 2")).unwrap();
        assert_eq!(scenario.body(&scenario.steps[0]), json!({"b": 1}));
        assert!(Scenario::parse(&step("make: network", "c 2")).is_err());
        assert!(Scenario::parse(&step("make: network", "service x")).is_err());
        assert!(Scenario::parse(&step("check: token", "a 2")).is_err());
    }
}
