//! The pages a browser sees: one form to log in, one to allow a device. No cookie, nothing from elsewhere,
//! and no script but the one that hands a token to a console.

use std::fmt::Write as _;

use ::api::Reply;

/// Text as it may stand in HTML, attributes included.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

const STYLE: &str = "body{font:16px sans-serif;max-width:24em;margin:4em auto;padding:0 1em}label{display:block;margin:.8em 0}\
input{display:block;width:100%;font:inherit;padding:.4em;box-sizing:border-box}button{font:inherit;padding:.5em 1.5em}\
.wrong{color:#a00}";

fn whole(status: u16, title: &str, body: &str, action: &str) -> Reply {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head>\
         <body><h1>{0}</h1>{body}</body></html>",
        escaped(title)
    );
    // Where the form may be sent on to, after a login, is the client's redirect URI.
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self' {action}; frame-ancestors 'none'; base-uri 'none'"
    );
    Reply::bytes("text/html; charset=utf-8", html)
        .status(status)
        .header("cache-control", "no-store")
        .header("content-security-policy", policy)
        .header("x-frame-options", "DENY")
        .header("referrer-policy", "no-referrer")
        .header("x-content-type-options", "nosniff")
}

/// A form that asks for a login. `hidden` goes back with it; `wrong`: what was wrong the last time.
pub fn login(
    title: &str,
    intro: &str,
    hidden: &[(&str, &str)],
    code: Option<&str>,
    wrong: Option<&str>,
    to: &str,
) -> Reply {
    let mut form = format!("<p>{}</p>", escaped(intro));
    if let Some(wrong) = wrong {
        let _ = write!(form, "<p class=\"wrong\" role=\"alert\">{}</p>", escaped(wrong));
    }
    form.push_str("<form method=\"post\">");
    for (name, value) in hidden {
        let _ =
            write!(form, "<input type=\"hidden\" name=\"{}\" value=\"{}\">", escaped(name), escaped(value));
    }
    if let Some(code) = code {
        let _ = write!(
            form,
            "<label>Code<input name=\"user_code\" value=\"{}\" autocomplete=\"off\" required></label>",
            escaped(code)
        );
    }
    form.push_str(
        "<label>User<input name=\"username\" autocomplete=\"username\" required></label>\
         <label>Domain<input name=\"domain\" value=\"Default\"></label>\
         <label>Password<input name=\"password\" type=\"password\" autocomplete=\"current-password\" required></label>\
         <button>Log in</button></form>",
    );
    whole(if wrong.is_some() { 401 } else { 200 }, title, &form, to)
}

/// A page that hands a token to a console, at once where there is script.
pub fn hand_over(to: &str, token: &str) -> Reply {
    const SCRIPT: &str = "document.forms[0].submit()";
    // base64 of the SHA-256 of that script: no other runs.
    const HASH: &str = "sha256-ePniVEkSivX/c7XWBGafqh8tSpiRrKiqYeqbG7N1TOE=";
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Logged in</title></head><body>\
         <form action=\"{}\" method=\"post\"><input type=\"hidden\" name=\"token\" value=\"{}\">\
         <noscript><button>Go on</button></noscript></form><script>{SCRIPT}</script></body></html>",
        escaped(to),
        escaped(token)
    );
    let policy = format!(
        "default-src 'none'; script-src '{HASH}'; form-action {}; frame-ancestors 'none'; base-uri 'none'",
        origin(to)
    );
    Reply::bytes("text/html; charset=utf-8", html)
        .header("cache-control", "no-store")
        .header("content-security-policy", policy)
        .header("x-frame-options", "DENY")
        .header("referrer-policy", "no-referrer")
        .header("x-content-type-options", "nosniff")
}

/// A page that only says something.
pub fn say(status: u16, title: &str, text: &str) -> Reply {
    whole(status, title, &format!("<p>{}</p>", escaped(text)), "")
}

/// Where the form may lead: scheme, host and port of a redirect URI.
pub fn origin(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return String::new() };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "+.-:[]".contains(c);
    if scheme.chars().all(plain) && host.chars().all(plain) {
        format!("{scheme}://{host}")
    } else {
        String::new()
    }
}
