//! One error type for the whole house.
//!
//! `kind` decides the HTTP status, `public` is what the caller may read, `source` is what only the log may read.
//! `Display` never includes the source, so that a message can be shown without leaking internals.

use std::fmt;

/// What kind of failure this is; each kind has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 400: the request is malformed; the message names the field.
    BadRequest,
    /// 401: no valid token, or wrong credentials.
    Unauthenticated,
    /// 403: known, but not allowed.
    Forbidden,
    /// 403 (Nova, Cinder: 403 or 413; Neutron: 409): a quota would be exceeded.
    OverQuota,
    /// 404: does not exist, or its existence may not be known.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 406: the requested microversion or representation cannot be served.
    NotAcceptable,
    /// 409: conflicts with the present state (duplicate, in use, wrong status).
    Conflict,
    /// 410: existed once and is gone.
    Gone,
    /// 412: a precondition (`If-Match`, JSON-patch test) failed.
    PreconditionFailed,
    /// 413: the body is larger than allowed.
    TooLarge,
    /// 415: the content type is not understood.
    UnsupportedMediaType,
    /// 416: the byte range cannot be served.
    RangeNotSatisfiable,
    /// 422: well-formed, but cannot be processed.
    Unprocessable,
    /// 429: too many requests.
    TooManyRequests,
    /// 500: our fault; details only in the log.
    Internal,
    /// 501: the standard has it, this cloud does not.
    NotImplemented,
    /// 503: a part is not reachable now; retrying may help.
    Unavailable,
    /// Not an HTTP answer: a compare-and-set or serialisation failure that the caller retries.
    Retry,
}

impl Kind {
    /// The HTTP status code of this kind (a dialect may choose another for [`Kind::OverQuota`]).
    pub const fn status(self) -> u16 {
        match self {
            Kind::BadRequest => 400,
            Kind::Unauthenticated => 401,
            Kind::Forbidden | Kind::OverQuota => 403,
            Kind::NotFound => 404,
            Kind::MethodNotAllowed => 405,
            Kind::NotAcceptable => 406,
            Kind::Conflict => 409,
            Kind::Gone => 410,
            Kind::PreconditionFailed => 412,
            Kind::TooLarge => 413,
            Kind::UnsupportedMediaType => 415,
            Kind::RangeNotSatisfiable => 416,
            Kind::Unprocessable => 422,
            Kind::TooManyRequests => 429,
            Kind::Internal => 500,
            Kind::NotImplemented => 501,
            Kind::Unavailable | Kind::Retry => 503,
        }
    }
}

/// A failure: what kind, what the caller may read, and what only the log may read.
pub struct Error {
    kind: Kind,
    public: String,
    /// The dialect's machine-readable type where it has one (Neutron: `"IpAddressInUse"`); empty = the dialect's default.
    code: &'static str,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The house's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {
        impl Error {
            $($(#[$doc])* pub fn $name(public: impl Into<String>) -> Self { Self::new(Kind::$kind, public) })*
        }
    };
}

constructors! {
    /// 400 with a message that names the field.
    bad_request => BadRequest,
    /// 401.
    unauthenticated => Unauthenticated,
    /// 403.
    forbidden => Forbidden,
    /// 403/409/413 by dialect: a quota would be exceeded.
    over_quota => OverQuota,
    /// 404.
    not_found => NotFound,
    /// 409.
    conflict => Conflict,
    /// 410.
    gone => Gone,
    /// 412.
    precondition_failed => PreconditionFailed,
    /// 413.
    too_large => TooLarge,
    /// 415.
    unsupported_media_type => UnsupportedMediaType,
    /// 422.
    unprocessable => Unprocessable,
    /// 501.
    not_implemented => NotImplemented,
    /// 503.
    unavailable => Unavailable,
}

impl Error {
    /// An error of `kind` whose text the caller may read.
    pub fn new(kind: Kind, public: impl Into<String>) -> Self {
        Error { kind, public: public.into(), code: "", source: None }
    }

    /// Our fault: the caller reads a fixed text, the log reads `detail`.
    pub fn internal(detail: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error {
            kind: Kind::Internal,
            public: "The server has either erred or is incapable of performing the requested operation."
                .into(),
            code: "",
            source: Some(detail.into()),
        }
    }

    /// A compare-and-set or serialisation failure; the transaction runner retries it.
    pub fn retry(detail: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error {
            kind: Kind::Retry,
            public: "The resource was changed by someone else at the same time; try again.".into(),
            code: "",
            source: Some(detail.into()),
        }
    }

    /// Names the dialect's machine-readable type, e.g. Neutron's `"OverQuota"`.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// Attaches what only the log may read.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the caller may read.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The dialect's machine-readable type, or empty.
    pub fn type_code(&self) -> &'static str {
        self.code
    }

    /// Whether asking again may succeed without anything being changed first: trouble of ours, a rate limit, or a transaction
    /// that others were faster than again and again (told to callers as a conflict).
    pub fn is_transient(&self) -> bool {
        if self.kind.status() >= 500 || self.kind == Kind::TooManyRequests {
            return true;
        }
        let mut next = self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static));
        while let Some(cause) = next {
            if cause.downcast_ref::<Error>().is_some_and(|e| e.kind == Kind::Retry) {
                return true;
            }
            next = cause.source();
        }
        false
    }

    /// The whole chain of causes, for the log only.
    pub fn chain(&self) -> String {
        let mut text = self.public.clone();
        let mut next = self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static));
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_succeed_later_is_told_from_what_may_not() {
        assert!(Error::unavailable("away").is_transient());
        assert!(
            Error::conflict("others were faster").caused_by(Error::retry("serialisation")).is_transient()
        );
        assert!(!Error::conflict("name taken").is_transient());
        assert!(!Error::bad_request("no").caused_by(Error::unavailable("away")).is_transient());
    }

    #[test]
    fn display_hides_the_source_and_chain_shows_it() {
        let error = Error::internal("password=secret");
        assert!(!error.to_string().contains("secret"));
        assert!(error.chain().contains("secret"));
    }
}
