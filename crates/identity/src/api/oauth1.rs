//! OAuth 1.0a (`OS-OAUTH1`): the programs that are registered.

use ::api::{Op, Reply, Request, Target};
use base::Result;
use serde_json::{Value, json};
use store::{Query, Tx};

use super::{Cx, enforce, entity, listed, one};
use crate::logic::body::{Doc, Kind, invalid, may_null, shape};
use crate::model::Consumer;
use crate::state::State;
use crate::words::no_consumer;

shape!(ConsumerCreate, "consumer", true, [may_null("description", Kind::Text(0, 65_535))]);
shape!(ConsumerUpdate, "consumer", true, [may_null("description", Kind::Text(0, 65_535))]);

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v3/OS-OAUTH1/consumers";
    const ONE: &str = "/v3/OS-OAUTH1/consumers/{consumer_id}";
    vec![
        Op::get(ALL, "identity:list_consumers", list).summary("Lists consumers."),
        Op::post(ALL, "identity:create_consumer", create)
            .status(201)
            .summary("Registers a consumer; its secret is told once."),
        Op::get(ONE, "identity:get_consumer", show).summary("Shows a consumer."),
        Op::patch(ONE, "identity:update_consumer", update).summary("Changes a consumer."),
        Op::delete(ONE, "identity:delete_consumer", delete).summary("Deletes a consumer."),
    ]
}

fn wire(cx: &Cx, consumer: &Consumer) -> Value {
    let own = json!({"id": consumer.id, "description": consumer.description});
    entity(cx, &format!("/v3/OS-OAUTH1/consumers/{}", consumer.id), own, &consumer.extra)
}

fn consumer(tx: &mut Tx<'_>, id: &str) -> Result<Consumer> {
    tx.get::<Consumer>(&id.to_owned())?.ok_or_else(|| no_consumer(id))
}

async fn list(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let found = cx.read(|tx| tx.list::<Consumer>(&Query::new())).await?;
    let items = found.iter().map(|c| wire(&cx, c)).collect();
    listed(&cx, &req, "consumers", items, &[])
}

async fn create(cx: Cx, req: Request<Doc<ConsumerCreate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let secret = cx.entropy.uuid().simple().to_string();
    fields.value("secret");
    let made = Consumer {
        id: cx.entropy.uuid().simple().to_string(),
        meta: store::Meta::default(),
        description: fields.nullable("description").flatten(),
        sealed: cx.seal_secret(&secret),
        extra: fields.extra(),
    };
    let made = cx
        .write(move |tx| {
            let mut made = made.clone();
            tx.insert(&mut made)?;
            Ok(made)
        })
        .await?;
    let mut shown = wire(&cx, &made);
    if let Some(map) = shown.as_object_mut() {
        map.insert("secret".into(), Value::String(secret));
    }
    Ok(one("consumer", shown))
}

async fn show(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("consumer_id").to_owned();
    let found = cx.read(move |tx| consumer(tx, &id)).await?;
    Ok(one("consumer", wire(&cx, &found)))
}

async fn update(cx: Cx, req: Request<Doc<ConsumerUpdate>>) -> Result<Reply> {
    let mut fields = req.body.check()?;
    enforce(&cx, &Target::none())?;
    let id = req.param("consumer_id").to_owned();
    fields.same_id(&id)?;
    if fields.has("secret") {
        return Err(invalid("secret", "Cannot change consumer secret"));
    }
    let (description, extra) = (fields.nullable("description"), fields.extra());
    let changed = cx
        .write(move |tx| {
            let mut held = consumer(tx, &id)?;
            if let Some(description) = &description {
                held.description.clone_from(description);
            }
            held.extra.extend(extra.clone());
            tx.update(&mut held)?;
            Ok(held)
        })
        .await?;
    Ok(one("consumer", wire(&cx, &changed)))
}

async fn delete(cx: Cx, req: Request<()>) -> Result<Reply> {
    enforce(&cx, &Target::none())?;
    let id = req.param("consumer_id").to_owned();
    cx.write(move |tx| {
        consumer(tx, &id)?;
        tx.delete::<Consumer>(&id)
    })
    .await?;
    Ok(Reply::empty())
}
