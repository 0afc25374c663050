//! From reports to rows. A storm of hosts that report at once is a few transactions, not one for each host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ::reconcile::Together;
use base::{HostId, Result, ServerId};
use contract::host::{HostReport, ServerReport};
use store::{Query, Version};

use crate::State;
use crate::hosts::unfinished;
use crate::logic::state::{Change, apply_report};
use crate::model::{Move, Server};
use crate::moving;

/// Reports that are taken at once.
const BATCH: usize = 64;

/// A report, and what in it is new of servers.
#[derive(Clone)]
pub(crate) struct News {
    pub report: Arc<HostReport>,
    /// With the version of the row to which just that report was nothing new, where it was applied before.
    pub changed: Vec<(ServerReport, Option<Version>)>,
}

/// Versions of rows to which what a host reports is nothing new, and will not be as long as both stay the same.
pub(crate) type Settled = Arc<HashMap<(HostId, ServerId), Version>>;

/// Where reports wait for those before them.
pub(crate) type Desk = Together<News, Result<Settled>>;

pub(crate) fn desk() -> Desk {
    Together::new(BATCH)
}

impl State {
    /// Hands a report to all services and applies what it says of servers to their rows.
    pub(crate) async fn take(&self, news: News) -> Result<Settled> {
        self.reports.call(news, |all| self.take_all(all)).await
    }

    async fn take_all(&self, all: Vec<News>) -> Vec<Result<Settled>> {
        if all.len() > 1
            && let Ok(settled) = self.take_together(&all).await
        {
            return all.iter().map(|_| Ok(settled.clone())).collect();
        }
        // One of them is in the way of the others.
        let mut told = Vec::with_capacity(all.len());
        for news in &all {
            told.push(self.take_together(std::slice::from_ref(news)).await);
        }
        told
    }

    async fn take_together(&self, all: &[News]) -> Result<Settled> {
        let reports: Vec<Arc<HostReport>> = all.iter().map(|news| news.report.clone()).collect();
        for part in &self.deps.host_parts {
            part.report(&reports).await?;
        }
        let known = all.iter().flat_map(|news| {
            let host = news.report.host;
            news.changed.iter().filter_map(move |(server, version)| Some(((host, server.id), (*version)?)))
        });
        let mut settled = self.as_known(known.collect()).await?;
        let changed = all.iter().flat_map(|news| {
            let host = news.report.host;
            news.changed.iter().map(move |(server, _)| (host, server.clone()))
        });
        let changed: Vec<(HostId, ServerReport)> =
            changed.filter(|(host, server)| !settled.contains_key(&(*host, server.id))).collect();
        if !changed.is_empty() {
            settled.extend(self.apply(changed).await?);
        }
        Ok(Arc::new(settled))
    }

    /// Of rows those that still have the version they are known by.
    async fn as_known(
        &self,
        mut known: HashMap<(HostId, ServerId), Version>,
    ) -> Result<HashMap<(HostId, ServerId), Version>> {
        if known.is_empty() {
            return Ok(known);
        }
        let ids: Vec<ServerId> = known.keys().map(|(_, server)| *server).collect();
        let now = self.store.read(move |tx| tx.versions::<Server>(&Query::new().is_in("id", &ids))).await?;
        let now: HashMap<ServerId, Version> =
            now.into_iter().filter_map(|(id, version)| Some((id.parse().ok()?, version))).collect();
        known.retain(|(_, server), version| now.get(server) == Some(version));
        Ok(known)
    }

    /// Applies reports to rows; answers those to which they are nothing new now.
    async fn apply(
        &self,
        changed: Vec<(HostId, ServerReport)>,
    ) -> Result<HashMap<(HostId, ServerId), Version>> {
        let patience = self.config.patience;
        self.store
            .write(move |tx| {
                let now = tx.now();
                let ids = changed.iter().map(|(_, report)| report.id);
                let rows = tx.list::<Server>(&Query::new().is_in("id", ids))?;
                let mut rows: BTreeMap<ServerId, Server> = rows.into_iter().map(|s| (s.id, s)).collect();
                let mut moves = moving::of(tx, rows.values())?;
                let mut told = BTreeSet::new();
                let mut changes: BTreeMap<ServerId, Change> = BTreeMap::new();
                let mut quiet = Vec::new();
                for (host, report) in &changed {
                    let Some(server) = rows.get_mut(&report.id) else { continue };
                    if let Some(moving) = moves.get_mut(&server.id)
                        && moving::note(moving, *host, report, now)
                    {
                        told.insert(server.id);
                    }
                    if server.host_id != Some(*host) || !server.ready || server.deleting {
                        continue;
                    }
                    let change = apply_report(server, report, now, patience);
                    // What fails is in error when patience ends, so it is looked at again.
                    if report.converged && server.moving.is_none() && !unfinished(server) {
                        quiet.push((*host, report.id));
                    }
                    let known = changes.entry(report.id).or_insert(Change::None);
                    *known = change.max(*known);
                }
                let (mut of_status, mut of_spec) = (Vec::new(), Vec::new());
                let mut refold = BTreeSet::new();
                for (id, change) in changes {
                    if rows.get(&id).is_some_and(unfinished) {
                        tx.wake("server", id);
                    }
                    match change {
                        Change::None => {}
                        Change::Status => of_status.extend(rows.remove(&id)),
                        Change::Spec => {
                            let Some(server) = rows.remove(&id) else { continue };
                            refold.extend(server.host_id);
                            refold.extend(moves.get(&id).into_iter().flat_map(Move::hosts));
                            of_spec.push(server);
                        }
                    }
                }
                tx.update_status_many(&mut of_status)?;
                tx.update_many(&mut of_spec)?;
                told.iter().for_each(|id| tx.wake("server", id));
                let mut moves: Vec<Move> =
                    moves.into_iter().filter_map(|(id, m)| told.contains(&id).then_some(m)).collect();
                tx.update_status_many(&mut moves)?;
                refold.into_iter().for_each(|host| tx.wake("host", host));
                // What was applied is nothing new from now on, where only the status changed: its version is the new one.
                let versions: HashMap<ServerId, Version> =
                    rows.values().chain(&of_status).map(|s| (s.id, Version::of(&s.meta))).collect();
                let settled = |(host, id)| Some(((host, id), *versions.get(&id)?));
                Ok(quiet.into_iter().filter_map(settled).collect())
            })
            .await
    }
}
