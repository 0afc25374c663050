//! `/v2.0/<resource>/{id}/tags`.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use api::{JsonSchema, Op, Reply, Request};
use base::{Error, ProjectId, Result};
use serde::Deserialize;
use serde_json::json;
use store::{Resource, Tx};

use super::wire::{Obj, Text, What, not_found};
use super::{Cx, target};
use crate::State;
use crate::model::{FloatingIp, Network, Port, Router, SecurityGroup, Subnet, SubnetPool};

/// Most tags of a resource.
const MAX_TAGS: usize = 50;

type Tag = Text<1, 255>;

/// A resource with tags.
trait Tagged: Resource<Id: FromStr + Display + Copy> + Sync {
    const WHAT: What;
    /// `network`, as policy names it.
    const NAME: &'static str;
    /// `networks`, as paths name it.
    const PATH: &'static str;
    fn owner(&self) -> &ProjectId;
    fn tags(&mut self) -> &mut BTreeSet<String>;
}

macro_rules! tagged {
    ($($resource:ident $what:ident $name:literal $path:literal),* $(,)?) => {
        $(impl Tagged for $resource {
            const WHAT: What = What::$what;
            const NAME: &'static str = $name;
            const PATH: &'static str = $path;
            fn owner(&self) -> &ProjectId { &self.project_id }
            fn tags(&mut self) -> &mut BTreeSet<String> { &mut self.tags }
        })*
        pub fn ops() -> Vec<Op<State>> {
            let mut all = Vec::new();
            $(all.extend(ops_of::<$resource>());)*
            all
        }
    };
}

tagged! {
    Network Network "network" "networks",
    Subnet Subnet "subnet" "subnets",
    SubnetPool SubnetPool "subnetpool" "subnetpools",
    Port Port "port" "ports",
    Router Router "router" "routers",
    FloatingIp FloatingIp "floatingip" "floatingips",
    SecurityGroup SecurityGroup "security_group" "security-groups",
}

/// Tags in a request.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TagsBody {
    tags: Vec<Tag>,
}

fn ops_of<R: Tagged>() -> Vec<Op<State>> {
    let all = format!("/v2.0/{}/{{id}}/tags", R::PATH);
    let one = format!("/v2.0/{}/{{id}}/tags/{{tag}}", R::PATH);
    let rule = |verb: &str| format!("{verb}_{}:tags", R::NAME);
    let names = R::NAME.replace('_', " ");
    vec![
        Op::get(all.clone(), rule("get"), list::<R>).summary(format!("Lists the tags of a {names}.")),
        Op::put(all.clone(), rule("update"), replace::<R>)
            .summary(format!("Replaces the tags of a {names}.")),
        Op::post(all.clone(), rule("create"), extend::<R>)
            .status(201)
            .summary(format!("Adds tags to a {names}.")),
        Op::delete(all, rule("delete"), clear::<R>).summary(format!("Takes all tags off a {names}.")),
        Op::get(one.clone(), rule("get"), has::<R>)
            .status(204)
            .summary(format!("Tells whether a {names} has a tag.")),
        Op::put(one.clone(), rule("update"), add::<R>)
            .status(201)
            .summary(format!("Adds a tag to a {names}.")),
        Op::delete(one, rule("delete"), take::<R>).summary(format!("Takes a tag off a {names}.")),
    ]
}

fn find<R: Tagged>(cx: &Cx, tx: &mut Tx<'_>, id: R::Id) -> Result<R> {
    let row = tx.get::<R>(&id)?.ok_or_else(|| not_found(R::WHAT, id))?;
    cx.allow(&target(R::WHAT, id, row.owner()))?;
    Ok(row)
}

fn id_of<R: Tagged, T>(req: &Request<T>) -> Result<R::Id> {
    req.id_or("id", |t| not_found(R::WHAT, t))
}

/// Changes the tags of a row; answers them.
async fn change<R: Tagged>(
    cx: &Cx,
    id: R::Id,
    work: impl Fn(&mut BTreeSet<String>) -> Result<()> + Send + Sync + 'static,
) -> Result<BTreeSet<String>> {
    let c = cx.clone();
    cx.store
        .write(move |tx| {
            let mut row = find::<R>(&c, tx, id)?;
            work(row.tags())?;
            if row.tags().len() > MAX_TAGS {
                return Err(Error::bad_request(format!("Invalid input for operation: The number of tags exceed the per-resource limit of {MAX_TAGS}."))
                    .code("InvalidInput"));
            }
            // No backend knows of tags: this is no change of the spec.
            tx.update_status(&mut row)?;
            Ok(std::mem::take(row.tags()))
        })
        .await
}

async fn list<R: Tagged>(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    let c = cx.clone();
    let tags = cx.store.read(move |tx| Ok(std::mem::take(find::<R>(&c, tx, id)?.tags()))).await?;
    Ok(Reply::json(&json!({"tags": tags})))
}

async fn has<R: Tagged>(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    let c = cx.clone();
    let tags = cx.store.read(move |tx| Ok(std::mem::take(find::<R>(&c, tx, id)?.tags()))).await?;
    let tag = req.param("tag");
    if tags.contains(tag) { Ok(Reply::empty()) } else { Err(not_found(What::Tag, tag)) }
}

fn set_of(tags: Vec<Tag>) -> BTreeSet<String> {
    tags.into_iter().map(Tag::into_string).collect()
}

async fn replace<R: Tagged>(cx: Cx, req: Request<Obj<TagsBody>>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    let new = set_of(req.body.0.tags);
    let tags = change::<R>(&cx, id, move |tags| {
        tags.clone_from(&new);
        Ok(())
    })
    .await?;
    Ok(Reply::json(&json!({"tags": tags})))
}

async fn extend<R: Tagged>(cx: Cx, req: Request<Obj<TagsBody>>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    let new = set_of(req.body.0.tags);
    let tags = change::<R>(&cx, id, move |tags| {
        tags.extend(new.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::json(&json!({"tags": tags})))
}

async fn clear<R: Tagged>(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    change::<R>(&cx, id, |tags| {
        tags.clear();
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

async fn add<R: Tagged>(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    let tag = req.param("tag").to_owned();
    if tag.is_empty() || tag.chars().count() > 255 {
        return Err(super::wire::invalid("tag", "it must have 1 to 255 characters"));
    }
    change::<R>(&cx, id, move |tags| {
        tags.insert(tag.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}

async fn take<R: Tagged>(cx: Cx, req: Request<()>) -> Result<Reply> {
    let id = id_of::<R, _>(&req)?;
    let tag = req.param("tag").to_owned();
    change::<R>(
        &cx,
        id,
        move |tags| if tags.remove(&tag) { Ok(()) } else { Err(not_found(What::Tag, &tag)) },
    )
    .await?;
    Ok(Reply::empty())
}
