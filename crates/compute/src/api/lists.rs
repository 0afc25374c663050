//! What handlers of small lists share: whose a thing is, pages of what is already in memory, strict queries.

use ::api::{Ctx, Page, Request, Target};
use base::{Error, HostId, Result};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::State;

/// The caller's own project and user, for rules about nothing in particular. Its existence is no secret.
pub(crate) fn own(cx: &Ctx<State>) -> Target {
    let target = match cx.auth().project_id() {
        Some(id) => Target::project(id),
        None => Target::none(),
    };
    target.user(cx.user_id()).visible(true)
}

/// Refuses parameters that the operation does not know, as Nova does since 2.75.
pub(crate) fn strict<T>(cx: &Ctx<State>, req: &Request<T>, known: &[&str]) -> Result<()> {
    if !cx.since(2, 75) {
        return Ok(());
    }
    match req.query_pairs().iter().find(|(key, _)| !known.contains(key)) {
        None => Ok(()),
        Some((key, _)) => Err(Error::bad_request(format!(
            "Invalid input for query parameters {key}. Additional properties are not allowed ('{key}' was unexpected)"
        ))),
    }
}

/// The page of `items` (already in order) after the marker, and the id of its last item where there are more.
///
/// # Errors
/// `BadRequest` for a marker that is none of them.
pub(crate) fn cut<T>(
    mut items: Vec<T>,
    page: &Page,
    id: impl Fn(&T) -> String,
) -> Result<(Vec<T>, Option<String>)> {
    if let Some(marker) = &page.marker {
        let at = items.iter().position(|item| id(item) == *marker);
        let at = at.ok_or_else(|| Error::bad_request(format!("marker [{marker}] not found")))?;
        items.drain(..=at);
    }
    let more = items.len() > page.limit;
    items.truncate(page.limit);
    let next = items.last().filter(|_| more).map(id);
    Ok((items, next))
}

/// The number by which versions before 2.53 know a host: from its id, so that it stays.
pub(crate) fn number(id: HostId) -> u64 {
    let bytes = id.0.as_bytes();
    let word = bytes.iter().take(4).fold(0_u64, |n, b| n << 8 | u64::from(*b));
    (word & 0x7fff_ffff).max(10)
}

/// Reads a struct from an object only: serde would also take a list of the fields, empty where all may be missing.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Only<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Only<T> {
        type Value = T;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(Only(std::marker::PhantomData))
}
