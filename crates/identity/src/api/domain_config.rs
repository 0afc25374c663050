//! Configuration of single domains. Kept and shown as in Keystone, secrets sealed and never shown. What it says of a
//! directory is done by [`crate::ldap`].

use std::collections::BTreeMap;

use ::api::{Op, Reply, Request, Target};
use base::{DomainId, Error, Result};
use serde_json::{Map, Value, json};
use store::Tx;

use super::{Cx, enforce, one};
use crate::directory;
use crate::logic::body::{Doc, Kind, shape, wrong_type};
use crate::logic::domain_options::{GROUPS, default_of, options, secret, shown};
use crate::model::{Domain, DomainConfig};
use crate::state::State;
use crate::words::no_domain;

shape!(ConfigBody, "", true, [crate::logic::body::must("config", Kind::Object)]);

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v3/domains/{domain_id}/config";
    const GROUP: &str = "/v3/domains/{domain_id}/config/{group}";
    const OPTION: &str = "/v3/domains/{domain_id}/config/{group}/{option}";
    const READ: &str = "identity:get_security_compliance_domain_config";
    const DEFAULT: &str = "identity:get_domain_config_default";
    let (change, delete_rule) = ("identity:update_domain_config", "identity:delete_domain_config");
    vec![
        Op::get(ALL, "identity:get_domain_config", show).summary("Shows a domain's configuration."),
        Op::put(ALL, "identity:create_domain_config", create).summary("Sets a domain's configuration."),
        Op::patch(ALL, change, update).summary("Changes options of a domain's configuration."),
        Op::delete(ALL, delete_rule, delete).summary("Removes a domain's configuration."),
        // What passwords must look like is for everybody to read; the handler asks for more for all else.
        Op::get(GROUP, READ, show).summary("Shows a group of options."),
        Op::patch(GROUP, change, update).summary("Changes a group of options."),
        Op::delete(GROUP, delete_rule, delete).summary("Removes a group of options."),
        Op::get(OPTION, READ, show).summary("Shows an option."),
        Op::patch(OPTION, change, update).summary("Changes an option."),
        Op::delete(OPTION, delete_rule, delete).summary("Removes an option."),
        Op::get("/v3/domains/config/default", DEFAULT, defaults).summary("Shows all defaults."),
        Op::get("/v3/domains/config/{group}/default", DEFAULT, defaults)
            .summary("Shows the defaults of a group."),
        Op::get("/v3/domains/config/{group}/{option}/default", DEFAULT, defaults)
            .summary("Shows the default of an option."),
    ]
}

type Options = BTreeMap<String, BTreeMap<String, Value>>;

/// Group and option of the path, as far as it names them.
fn of_path<T>(req: &Request<T>) -> (Option<String>, Option<String>) {
    let of = |name: &str| Some(req.param(name)).filter(|t| !t.is_empty()).map(str::to_owned);
    (of("group"), of("option"))
}

fn unsupported(reason: String) -> Error {
    Error::forbidden(format!("Invalid domain specific configuration: {reason}."))
}

fn supported(group: Option<&str>, option: Option<&str>) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    if options(group).is_none() {
        return Err(unsupported(format!(
            "Group {group} is not supported for domain specific configurations"
        )));
    }
    match option {
        Some(option) if !shown(group, option) && !secret(group, option) => Err(unsupported(format!(
            "Option {option} in group {group} is not supported for domain specific configurations"
        ))),
        _ => Ok(()),
    }
}

fn absent(domain: &DomainId, group: Option<&str>, option: Option<&str>) -> Error {
    let what = match (group, option) {
        (Some(group), Some(option)) => format!("option {option} in group {group}"),
        (Some(group), None) => format!("group {group}"),
        _ => "any options".to_owned(),
    };
    Error::not_found(format!("Could not find {what} in domain configuration for domain {domain}."))
}

/// What of the options the path asks for: all, a group with its name, or the value of an option with its name.
fn part(all: &Options, group: Option<&str>, option: Option<&str>) -> Option<Value> {
    let Some(group) = group else { return Some(json!(all)).filter(|_| !all.is_empty()) };
    let of_group = all.get(group)?;
    match option {
        None => Some(json!({group: of_group})),
        Some(option) => of_group.get(option).map(|value| json!({option: value})),
    }
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    let (group, option) = of_path(&req);
    let (text, compliance) =
        (req.param("domain_id").to_owned(), group.as_deref() == Some("security_compliance"));
    let rule = if compliance {
        "identity:get_security_compliance_domain_config"
    } else {
        "identity:get_domain_config"
    };
    if !cx.allows(rule, &Target::none()) {
        return Err(cx.dialect().policy_denied(rule));
    }
    let id = DomainId::new(text.clone());
    let (domain, held) =
        cx.read(move |tx| Ok((tx.get::<Domain>(&id)?, tx.get::<DomainConfig>(&id)?))).await?;
    let domain = domain.ok_or_else(|| no_domain(&text))?;
    if compliance {
        return password_rules(&cx, option.as_deref());
    }
    supported(group.as_deref(), option.as_deref())?;
    let found = held.and_then(|c| part(&c.options, group.as_deref(), option.as_deref()));
    let found = found.ok_or_else(|| absent(&domain.id, group.as_deref(), option.as_deref()))?;
    Ok(one("config", found))
}

/// The readable part of `[security_compliance]`, which is the same for all domains.
fn password_rules(cx: &Cx, option: Option<&str>) -> Result<Reply> {
    let rules = &cx.config.operator.security_compliance;
    let all = [
        ("password_regex", json!(rules.password_regex)),
        ("password_regex_description", json!(rules.password_regex_description)),
    ];
    let Some(option) = option else {
        let map: Map<String, Value> = all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        return Ok(one("config", json!({"security_compliance": map})));
    };
    let found = all.into_iter().find(|(name, _)| *name == option);
    let (name, value) = found.ok_or_else(|| {
        unsupported(format!(
            "Reading security compliance values other than password_regex and password_regex_description is not allowed: {option}"
        ))
    })?;
    Ok(one("config", json!({name: value})))
}

/// Options to be set: shown ones, and secrets.
type Given = (Options, Options);

fn read(config: Map<String, Value>) -> Result<Given> {
    let (mut open, mut secrets) = (Options::new(), Options::new());
    if config.is_empty() {
        return Err(unsupported("No options specified".to_owned()));
    }
    for (group, all) in config {
        let Value::Object(all) = all else {
            return Err(wrong_type(&format!("config/{group}"), &all, "'object'"));
        };
        if all.is_empty() {
            return Err(unsupported(format!(
                "The value of group {group} specified in the config should be a dictionary of options"
            )));
        }
        for (option, value) in all {
            supported(Some(&group), Some(&option))?;
            let into = if secret(&group, &option) { &mut secrets } else { &mut open };
            into.entry(group.clone()).or_default().insert(option, value);
        }
    }
    Ok((open, secrets))
}

fn sealed(cx: &Cx, secrets: Options) -> BTreeMap<String, BTreeMap<String, String>> {
    let one = |value: Value| cx.seal_secret(value.as_str().unwrap_or(&value.to_string()));
    secrets
        .into_iter()
        .map(|(group, all)| (group, all.into_iter().map(|(option, value)| (option, one(value))).collect()))
        .collect()
}

fn config(req: &Request<Doc<ConfigBody>>) -> Result<Map<String, Value>> {
    Ok(req.body.check()?.object("config").unwrap_or_default())
}

async fn create(cx: Cx, req: Request<Doc<ConfigBody>>) -> Result<Reply> {
    let given = config(&req)?;
    enforce(&cx, &Target::none())?;
    let (options, secrets) = read(given)?;
    let (id, secrets) = (DomainId::new(req.param("domain_id")), sealed(&cx, secrets));
    let (made, fresh) = cx
        .write(move |tx| {
            directory::domain(tx, &id)?;
            let fresh = !tx.delete::<DomainConfig>(&id)?;
            let mut config = DomainConfig {
                id: id.clone(),
                meta: store::Meta::default(),
                options: options.clone(),
                secrets: secrets.clone(),
            };
            tx.insert(&mut config)?;
            Ok((config, fresh))
        })
        .await?;
    cx.directories.notify_one();
    Ok(one("config", json!(made.options)).status(if fresh { 201 } else { 200 }))
}

/// What the body sets, as groups of options. A body for one option has no group around it.
fn update_of(
    mut given: Map<String, Value>,
    group: Option<&str>,
    option: Option<&str>,
) -> Result<Map<String, Value>> {
    let Some(group) = group else { return Ok(given) };
    supported(Some(group), option)?;
    if let Some(option) = option {
        if given.len() != 1 || !given.contains_key(option) {
            return Err(unsupported(format!(
                "Trying to update option {option} in group {group}, so that, and only that, option must be specified in the config"
            )));
        }
        let mut outer = Map::new();
        outer.insert(group.to_owned(), Value::Object(std::mem::take(&mut given)));
        return Ok(outer);
    }
    if given.len() != 1 || !given.contains_key(group) {
        return Err(unsupported(format!(
            "Trying to update group {group}, so that, and only that, group must be specified in the config"
        )));
    }
    Ok(given)
}

fn holds(config: &DomainConfig, group: &str, option: Option<&str>) -> bool {
    let open = config.options.get(group);
    let secrets = config.secrets.get(group);
    match option {
        None => open.is_some() || secrets.is_some(),
        Some(option) => {
            open.is_some_and(|g| g.contains_key(option)) || secrets.is_some_and(|g| g.contains_key(option))
        }
    }
}

async fn update(cx: Cx, req: Request<Doc<ConfigBody>>) -> Result<Reply> {
    let given = config(&req)?;
    enforce(&cx, &Target::none())?;
    let (group, option) = of_path(&req);
    let (options, secrets) = read(update_of(given, group.as_deref(), option.as_deref())?)?;
    let (id, secrets) = (DomainId::new(req.param("domain_id")), sealed(&cx, secrets));
    let changed = cx
        .write(move |tx| {
            directory::domain(tx, &id)?;
            let held = tx.get::<DomainConfig>(&id)?;
            let present = |c: &DomainConfig| group.as_deref().is_none_or(|g| holds(c, g, option.as_deref()));
            let Some(mut config) = held.filter(present) else {
                return Err(absent(&id, group.as_deref(), option.as_deref()));
            };
            for (group, all) in options.clone() {
                config.options.entry(group).or_default().extend(all);
            }
            for (group, all) in secrets.clone() {
                config.secrets.entry(group).or_default().extend(all);
            }
            tx.update(&mut config)?;
            Ok(config)
        })
        .await?;
    cx.directories.notify_one();
    Ok(one("config", json!(changed.options)))
}

fn remove(tx: &mut Tx<'_>, id: &DomainId, group: Option<&str>, option: Option<&str>) -> Result<()> {
    let Some(group) = group else {
        tx.delete::<DomainConfig>(id)?;
        return Ok(());
    };
    let held = tx.get::<DomainConfig>(id)?.filter(|c| holds(c, group, option));
    let Some(mut config) = held else { return Err(absent(id, Some(group), option)) };
    match option {
        None => {
            config.options.remove(group);
            config.secrets.remove(group);
        }
        Some(option) => {
            config.options.get_mut(group).map(|g| g.remove(option));
            config.secrets.get_mut(group).map(|g| g.remove(option));
        }
    }
    config.options.retain(|_, all| !all.is_empty());
    config.secrets.retain(|_, all| !all.is_empty());
    tx.update(&mut config)
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let (group, option) = of_path(&req);
    supported(group.as_deref(), option.as_deref())?;
    let id = DomainId::new(req.param("domain_id"));
    cx.write(move |tx| {
        directory::domain(tx, &id)?;
        remove(tx, &id, group.as_deref(), option.as_deref())
    })
    .await?;
    Ok(Reply::empty())
}

async fn defaults(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let (group, option) = of_path(&req);
    supported(group.as_deref(), option.as_deref())?;
    let all: Options = GROUPS
        .iter()
        .map(|(group, all)| {
            let all = all.iter().map(|(option, text)| ((*option).to_owned(), default_of(text)));
            ((*group).to_owned(), all.collect())
        })
        .collect();
    let found = part(&all, group.as_deref(), option.as_deref());
    let found = found.ok_or_else(|| {
        unsupported(format!("Reading the default for option {} is not supported", option.unwrap_or_default()))
    })?;
    Ok(one("config", found))
}
