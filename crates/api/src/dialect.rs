//! How a service speaks: error envelope, paging, microversions. One value per service.

use axum::http::StatusCode;
use base::{Error, Kind};
use serde_json::{Value, json};

use crate::{Mv, MvRange};

/// The shape of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// `{"error": {code, message, title}}`
    Keystone,
    /// `{"itemNotFound": {code, message}}`
    Nova,
    /// As Nova's; quotas are 413.
    Cinder,
    /// `{"NeutronError": {type, message, detail}}`
    Neutron,
    /// webob's: HTML, or JSON for who asks for it.
    Glance,
    /// `{"errors": [{status, title, detail, code, request_id}]}`
    Placement,
}

/// The shape of links to the next page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// `servers_links: [{rel: next, href}]`
    Links,
    /// `next`, `first`, `schema`
    Glance,
    /// `links: {next, self, previous}`
    Keystone,
    /// None.
    None,
}

/// How a service speaks.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// The service's type in the catalog; names metrics and documents.
    pub service_type: &'static str,
    /// Errors.
    pub envelope: Envelope,
    /// Pages.
    pub paging: Paging,
    /// Microversions, if the service has them.
    pub microversions: Option<MvRange>,
    /// Whether a body without a content type is refused with 415; else it is taken for the operation's own.
    pub needs_content_type: bool,
    /// The service's own header with the request id besides `x-openstack-request-id`.
    pub request_id_header: Option<&'static str>,
}

/// Keystone v3.
pub static KEYSTONE: Dialect = Dialect {
    service_type: "identity",
    envelope: Envelope::Keystone,
    paging: Paging::Keystone,
    microversions: None,
    needs_content_type: false,
    request_id_header: None,
};

/// Nova v2.1.
pub static NOVA: Dialect = Dialect {
    service_type: "compute",
    envelope: Envelope::Nova,
    paging: Paging::Links,
    microversions: Some(MvRange {
        service: "compute",
        min: Mv(2, 1),
        max: Mv(2, 96),
        legacy_header: Some("x-openstack-nova-api-version"),
    }),
    needs_content_type: false,
    request_id_header: Some("x-compute-request-id"),
};

/// Cinder v3.
pub static CINDER: Dialect = Dialect {
    service_type: "block-storage",
    envelope: Envelope::Cinder,
    paging: Paging::Links,
    microversions: Some(MvRange { service: "volume", min: Mv(3, 0), max: Mv(3, 71), legacy_header: None }),
    needs_content_type: false,
    request_id_header: Some("x-compute-request-id"),
};

/// Neutron v2.0.
pub static NEUTRON: Dialect = Dialect {
    service_type: "network",
    envelope: Envelope::Neutron,
    paging: Paging::Links,
    microversions: None,
    needs_content_type: false,
    request_id_header: None,
};

/// Glance v2.
pub static GLANCE: Dialect = Dialect {
    service_type: "image",
    envelope: Envelope::Glance,
    paging: Paging::Glance,
    microversions: None,
    needs_content_type: false,
    request_id_header: None,
};

/// Placement.
pub static PLACEMENT: Dialect = Dialect {
    service_type: "placement",
    envelope: Envelope::Placement,
    paging: Paging::None,
    microversions: Some(MvRange { service: "placement", min: Mv(1, 0), max: Mv(1, 39), legacy_header: None }),
    needs_content_type: true,
    request_id_header: None,
};

impl Dialect {
    /// The status of `error` in this dialect.
    pub fn status(&self, error: &Error) -> StatusCode {
        let code = match (error.kind(), self.envelope) {
            (Kind::OverQuota, Envelope::Cinder | Envelope::Glance) => 413,
            (Kind::OverQuota, Envelope::Neutron) => 409,
            (kind, _) => kind.status(),
        };
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The body of `error` and its content type. `accept` is the request's `Accept`.
    pub fn render(&self, error: &Error, request_id: &str, accept: &str) -> (&'static str, String) {
        let status = self.status(error);
        let title = status.canonical_reason().unwrap_or("");
        let message = error.public();
        let body = match self.envelope {
            Envelope::Keystone => {
                json!({"error": {"code": status.as_u16(), "message": message, "title": title}})
            }
            Envelope::Nova | Envelope::Cinder => {
                let mut map = serde_json::Map::new();
                map.insert(
                    fault_name(status.as_u16()).into(),
                    json!({"code": status.as_u16(), "message": message}),
                );
                Value::Object(map)
            }
            Envelope::Neutron => {
                let kind =
                    if error.type_code().is_empty() { neutron_type(error.kind()) } else { error.type_code() };
                json!({"NeutronError": {"type": kind, "message": message, "detail": ""}})
            }
            Envelope::Placement => placement_error(error, status, title, request_id),
            Envelope::Glance => {
                if accept.contains("application/json") && !accept.contains("text/html") {
                    let code = format!("{} {title}", status.as_u16());
                    json!({"message": message, "code": code, "title": title})
                } else {
                    return ("text/html; charset=UTF-8", glance_html(status.as_u16(), title, message));
                }
            }
        };
        ("application/json", body.to_string())
    }

    /// 400 for a field with a wrong value, in the service's words.
    pub fn invalid_field(&self, path: &str, reason: &str) -> Error {
        Error::bad_request(match self.envelope {
            Envelope::Nova | Envelope::Cinder => {
                format!("Invalid input for field/attribute {path}. {reason}")
            }
            Envelope::Neutron => format!("Invalid input for {path}. Reason: {reason}."),
            Envelope::Keystone => format!("Invalid input for field '{path}': {reason}"),
            Envelope::Glance => format!("Provided object does not match schema: {path}: {reason}"),
            Envelope::Placement => format!("JSON does not validate: {path}: {reason}"),
        })
        .code(if self.envelope == Envelope::Neutron { "HTTPBadRequest" } else { "" })
    }

    /// 400 for a body that is no JSON, or not of the shape.
    pub fn malformed_body(&self, reason: &str) -> Error {
        Error::bad_request(match self.envelope {
            Envelope::Keystone => format!(
                "Expecting to find valid JSON in request body: {reason}. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error."
            ),
            Envelope::Placement => format!("Malformed JSON: {reason}"),
            _ => format!("Malformed request body: {reason}"),
        })
        .code(if self.envelope == Envelope::Neutron { "HTTPBadRequest" } else { "" })
    }

    /// 415 for a content type the operation does not take.
    pub fn bad_media_type(&self, media: &str, takes: &[&str]) -> Error {
        let media: String = media.chars().filter(|c| !c.is_control()).take(64).collect();
        Error::unsupported_media_type(if self.envelope == Envelope::Placement {
            let media = if media.is_empty() { "None" } else { &media };
            format!("The media type {media} is not supported, use {}", takes.join(", "))
        } else {
            format!("Unsupported Content-Type: {media}")
        })
    }

    /// 403 for a rule that said no.
    pub fn policy_denied(&self, rule: &str) -> Error {
        match self.envelope {
            Envelope::Keystone => {
                Error::forbidden(format!("You are not authorized to perform the requested action: {rule}."))
            }
            Envelope::Neutron => {
                Error::forbidden(format!("(rule:{rule}) is disallowed by policy")).code("PolicyNotAuthorized")
            }
            Envelope::Glance => {
                Error::forbidden(format!("You are not authorized to complete {rule} action."))
            }
            Envelope::Placement => Error::forbidden(format!("Policy does not allow {rule} to be performed.")),
            _ => Error::forbidden(format!("Policy doesn't allow {rule} to be performed.")),
        }
    }

    /// 406 for a microversion out of range.
    pub fn bad_version(&self, asked: Mv, range: &MvRange) -> Error {
        Error::new(
            Kind::NotAcceptable,
            if self.envelope == Envelope::Placement {
                format!("Unacceptable version header: {asked}")
            } else {
                format!(
                    "Version {asked} is not supported by the API. Minimum is {} and maximum is {}.",
                    range.min, range.max
                )
            },
        )
    }

    /// 404 for a path that is no resource.
    pub fn no_such_path(&self) -> Error {
        Error::not_found("The resource could not be found.")
    }
}

fn fault_name(status: u16) -> &'static str {
    match status {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 | 429 => "overLimit",
        415 => "badMediaType",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    }
}

fn neutron_type(kind: Kind) -> &'static str {
    match kind {
        Kind::BadRequest => "HTTPBadRequest",
        Kind::Unauthenticated => "HTTPUnauthorized",
        Kind::Forbidden => "HTTPForbidden",
        Kind::OverQuota => "OverQuota",
        Kind::NotFound => "HTTPNotFound",
        Kind::MethodNotAllowed => "HTTPMethodNotAllowed",
        Kind::NotAcceptable => "HTTPNotAcceptable",
        Kind::Conflict => "HTTPConflict",
        Kind::Gone => "HTTPGone",
        Kind::PreconditionFailed => "HTTPPreconditionFailed",
        Kind::TooLarge => "HTTPRequestEntityTooLarge",
        Kind::UnsupportedMediaType => "HTTPUnsupportedMediaType",
        Kind::RangeNotSatisfiable => "HTTPRequestRangeNotSatisfiable",
        Kind::Unprocessable => "HTTPUnprocessableEntity",
        Kind::TooManyRequests => "HTTPTooManyRequests",
        Kind::Internal => "HTTPInternalServerError",
        Kind::NotImplemented => "HTTPNotImplemented",
        Kind::Unavailable | Kind::Retry => "HTTPServiceUnavailable",
    }
}

fn placement_error(error: &Error, status: StatusCode, title: &str, request_id: &str) -> Value {
    let code = if error.type_code().is_empty() { "placement.undefined_code" } else { error.type_code() };
    let mut one = json!({
        "status": status.as_u16(),
        "title": title,
        "detail": error.public(),
        "code": code,
        "request_id": request_id,
    });
    if let (Kind::NotAcceptable, Some(range), Some(map)) =
        (error.kind(), PLACEMENT.microversions, one.as_object_mut())
    {
        map.insert("max_version".into(), range.max.to_string().into());
        map.insert("min_version".into(), range.min.to_string().into());
    }
    json!({"errors": [one]})
}

/// webob's error page, which clients take apart by its tags.
fn glance_html(status: u16, title: &str, message: &str) -> String {
    let mut safe = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    format!(
        "<html>\n <head>\n  <title>{status} {title}</title>\n </head>\n <body>\n  <h1>{status} {title}</h1>\n  {safe}<br /><br />\n\n\n\n </body>\n</html>"
    )
}
