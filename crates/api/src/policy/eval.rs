//! Evaluation of a rule for a caller and a target that may be unknown yet.

use std::borrow::Cow;
use std::collections::HashMap;

use contract::{AuthContext, Scope};

use super::parse::{Expr, Template};
use super::{Target, Value};

/// Kleene's three values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tri {
    No,
    Maybe,
    Yes,
}

impl From<bool> for Tri {
    fn from(value: bool) -> Self {
        if value { Tri::Yes } else { Tri::No }
    }
}

/// `target` of `None` is one that is not known yet. The rules have been checked for circles, so this ends.
pub(crate) fn eval(
    expr: &Expr,
    rules: &HashMap<String, Expr>,
    auth: &AuthContext,
    target: Option<&Target>,
) -> Tri {
    match expr {
        Expr::Always => Tri::Yes,
        Expr::Never => Tri::No,
        Expr::Not(inner) => match eval(inner, rules, auth, target) {
            Tri::Yes => Tri::No,
            Tri::Maybe => Tri::Maybe,
            Tri::No => Tri::Yes,
        },
        Expr::All(items) => {
            let mut result = Tri::Yes;
            for item in items {
                match eval(item, rules, auth, target) {
                    Tri::No => return Tri::No,
                    Tri::Maybe => result = Tri::Maybe,
                    Tri::Yes => {}
                }
            }
            result
        }
        Expr::Any(items) => {
            let mut result = Tri::No;
            for item in items {
                match eval(item, rules, auth, target) {
                    Tri::Yes => return Tri::Yes,
                    Tri::Maybe => result = Tri::Maybe,
                    Tri::No => {}
                }
            }
            result
        }
        Expr::Rule(name) => rules.get(name).map_or(Tri::No, |inner| eval(inner, rules, auth, target)),
        Expr::Role(role) => {
            with(role, target, |role| auth.roles.iter().any(|r| r.eq_ignore_ascii_case(role)))
        }
        Expr::Literal(literal, right) => with(right, target, |value| value == literal),
        Expr::Caller(attribute, right) => match caller(auth, attribute) {
            None => Tri::No,
            Some(mine) => with(right, target, |value| value == mine),
        },
    }
}

/// Applies `test` to the value of `template`; a key the target lacks is no.
fn with(template: &Template, target: Option<&Target>, test: impl Fn(&str) -> bool) -> Tri {
    match template {
        Template::Text(text) => test(text).into(),
        Template::Key(key) => match target {
            None => Tri::Maybe,
            Some(target) => match target.get(key) {
                None => Tri::No,
                Some(Value::Text(text)) => test(text).into(),
                Some(Value::Many(values)) => values.iter().any(|v| test(v)).into(),
            },
        },
    }
}

/// An attribute of the caller, as oslo.context names them.
fn caller<'a>(auth: &'a AuthContext, attribute: &str) -> Option<Cow<'a, str>> {
    let flag = |value: bool| Some(Cow::Borrowed(if value { "True" } else { "False" }));
    match attribute {
        "user_id" | "user" => Some(Cow::Borrowed(auth.user_id.as_str())),
        "user_domain_id" => Some(Cow::Borrowed(auth.user_domain_id.as_str())),
        "project_id" | "tenant_id" | "tenant" => auth.project_id().map(|p| Cow::Borrowed(p.as_str())),
        "project_domain_id" => match &auth.scope {
            Scope::Project { domain_id, .. } => Some(Cow::Borrowed(domain_id.as_str())),
            _ => None,
        },
        "domain_id" => match &auth.scope {
            Scope::Domain { id, .. } => Some(Cow::Borrowed(id.as_str())),
            _ => None,
        },
        "system_scope" => matches!(auth.scope, Scope::System).then_some(Cow::Borrowed("all")),
        "is_admin" => flag(auth.has_role("admin")),
        "is_admin_project" => flag(auth.is_admin_project),
        _ => None,
    }
}
