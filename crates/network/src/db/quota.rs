//! Quotas, claimed in the transaction of what they pay for.

use base::{Error, ProjectId, Result};
use store::{Query, Resource, Tx};

use crate::Env;
use crate::model::Quota;

/// The limit of one resource for a project; −1 = none.
pub fn limit(tx: &mut Tx<'_>, env: &Env, project: &ProjectId, resource: &str) -> Result<i64> {
    let own = tx.get::<Quota>(project)?.and_then(|q| q.limits.get(resource).copied());
    Ok(own.or_else(|| env.config.quotas.get(resource).copied()).unwrap_or(-1))
}

/// Makes sure that `add` more rows of `R` fit.
///
/// # Errors
/// `OverQuota`.
pub fn claim<R: Resource>(
    tx: &mut Tx<'_>,
    env: &Env,
    project: &ProjectId,
    resource: &str,
    add: usize,
) -> Result<()> {
    let limit = limit(tx, env, project, resource)?;
    let Ok(limit) = u64::try_from(limit) else { return Ok(()) };
    let used = tx.count::<R>(&Query::new().eq("project_id", project))?;
    if used.saturating_add(add as u64) > limit {
        let text = format!("Quota exceeded for resources: ['{resource}'].");
        return Err(Error::over_quota(text).code("OverQuota"));
    }
    Ok(())
}
