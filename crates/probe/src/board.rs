//! What an iteration has: the items of its steps, how they belong together, and which of them are of any use.

use std::collections::BTreeMap;
use std::time::Instant;

use osclient::journal::Thing;
use serde_json::Value;

use crate::record::Place;
use crate::scenario::{Scenario, Step};
use crate::template;

/// An item of a step.
#[derive(Debug, Clone, Default)]
pub struct Item {
    /// Its number, from zero.
    pub index: usize,
    /// Its name in the cloud.
    pub name: String,
    /// Its id.
    pub id: Option<String>,
    /// As the cloud showed it last.
    pub value: Value,
    /// Items it belongs to: step → number.
    pub parents: BTreeMap<String, usize>,
    /// The record that is why it is of no use.
    pub failed: Option<u64>,
    /// Where it is.
    pub place: Place,
    /// When making it began.
    pub begun: Option<Instant>,
    /// Where it stands in the journal.
    pub journal: Option<u64>,
    /// Whether the cloud makes volumes for it.
    pub brings: bool,
    /// Whether the agent is in it.
    pub agent: bool,
}

impl Item {
    /// The first fixed IPv4 address of a server.
    pub fn address(&self) -> Option<String> {
        let addresses = self.value.get("addresses")?.as_object()?;
        let all = addresses.values().filter_map(Value::as_array).flatten();
        let fixed = all.filter(|a| a.get("OS-EXT-IPS:type").and_then(Value::as_str) != Some("floating"));
        fixed.filter_map(|a| a.get("addr")?.as_str()).find(|a| a.contains('.')).map(str::to_owned)
    }
}

/// Why an item is not worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// What it needs failed in that record.
    Because(u64),
    /// What it needs is not there.
    Missing(String),
}

/// All items so far.
#[derive(Debug, Default)]
pub struct Board {
    /// By step.
    pub items: BTreeMap<String, Vec<Item>>,
}

impl Board {
    /// Items of a step.
    pub fn of(&self, step: &str) -> &[Item] {
        self.items.get(step).map_or(&[], Vec::as_slice)
    }

    /// An item.
    pub fn item_mut(&mut self, step: &str, index: usize) -> Option<&mut Item> {
        self.items.get_mut(step)?.iter_mut().find(|i| i.index == index)
    }

    /// Which items a step is about to work on, with what they belong to.
    pub fn plan(&self, step: &Step, set: &BTreeMap<String, Value>) -> Result<Vec<Item>, String> {
        let target = step.each.as_ref().or(step.wait.as_ref()).or(step.remove.as_ref());
        if let Some(target) = target {
            return Ok(self.of(target).iter().map(|i| child(target, i, i.index)).collect());
        }
        let count = match &step.count {
            None => 1,
            Some(value) => {
                let filled = template::fill(value, &|name| {
                    set.get(name).cloned().ok_or_else(|| format!("count: there is no {name}"))
                })?;
                let count = filled.as_u64().filter(|c| *c <= 10_000);
                count
                    .and_then(|c| usize::try_from(c).ok())
                    .ok_or_else(|| format!("count: {filled} is no number"))?
            }
        };
        let ground = step.on.as_ref().map(|on| (on, self.of(on)));
        Ok((0..count)
            .map(|index| match ground {
                Some((on, items)) => match items.get(index % items.len().max(1)) {
                    Some(item) => child(on, item, index),
                    None => Item { index, ..Item::default() },
                },
                None => Item { index, ..Item::default() },
            })
            .collect())
    }

    /// What `name` stands for to an item: its own ancestor, the only item of a step, or one of them in turn.
    pub fn refer(&self, item: &Item, name: &str) -> Result<Value, Unfit> {
        let (step, path) = name.split_once('.').unwrap_or((name, "id"));
        let found = self.relative(item, step).ok_or_else(|| Unfit::Missing(format!("there is no {step}")))?;
        if let Some(because) = found.failed {
            return Err(Unfit::Because(because));
        }
        if path == "id" {
            let id = found.id.clone().ok_or_else(|| Unfit::Missing(format!("{step} has no id")))?;
            return Ok(Value::from(id));
        }
        if path == "address" {
            let address = found.address().ok_or_else(|| Unfit::Missing(format!("{step} has no address")))?;
            return Ok(Value::from(address));
        }
        let mut value = &found.value;
        for part in path.split('.') {
            let next = match part.parse::<usize>() {
                Ok(index) => value.get(index),
                Err(_) => value.get(part),
            };
            value = next.ok_or_else(|| Unfit::Missing(format!("{step} has no {path}")))?;
        }
        Ok(value.clone())
    }

    /// The item of a step that an item has to do with.
    pub fn relative(&self, item: &Item, step: &str) -> Option<&Item> {
        let items = self.of(step);
        match item.parents.get(step) {
            Some(index) => items.iter().find(|i| i.index == *index),
            None => items.get(item.index % items.len().max(1)),
        }
    }

    /// The steps that make a kind of thing, with their items.
    pub fn all<'a>(
        &'a self,
        scenario: &'a Scenario,
        thing: Thing,
    ) -> impl Iterator<Item = (&'a str, &'a Item)> {
        let steps = scenario.steps.iter().filter(move |s| s.make == Some(thing));
        steps.flat_map(|s| self.of(&s.id).iter().map(|i| (s.id.as_str(), i)))
    }
}

fn child(step: &str, parent: &Item, index: usize) -> Item {
    let mut parents = parent.parents.clone();
    parents.insert(step.to_owned(), parent.index);
    Item { index, parents, failed: parent.failed, place: parent.place.clone(), ..Item::default() }
}
