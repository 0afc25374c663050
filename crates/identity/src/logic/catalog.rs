//! Endpoint URLs with places for the token's project and user.

/// Fills `%(project_id)s`, `$(project_id)s`, `%(tenant_id)s`, `%(user_id)s`. `None` where a place is unknown or broken,
/// or asks for a project and there is none: such an endpoint is left out of the catalog.
pub fn fill(url: &str, project_id: Option<&str>, user_id: &str) -> Option<String> {
    let mut filled = String::with_capacity(url.len() + 32);
    let mut rest = url;
    while let Some(at) = rest.find(['%', '$']) {
        let (before, place) = rest.split_at(at);
        filled.push_str(before);
        let Some(inner) = place.get(1..).and_then(|p| p.strip_prefix('(')) else {
            // Python's formatting would stumble over a lone percent sign; a dollar is just a dollar.
            if place.starts_with('%') {
                return None;
            }
            filled.push('$');
            rest = place.get(1..)?;
            continue;
        };
        let (name, after) = inner.split_once(")s")?;
        filled.push_str(match name {
            "project_id" | "tenant_id" => project_id?,
            "user_id" => user_id,
            _ => return None,
        });
        rest = after;
    }
    filled.push_str(rest);
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::fill;
    use proptest::prelude::*;

    #[test]
    fn places_are_filled() {
        assert_eq!(fill("http://h/v3/%(project_id)s/x", Some("p"), "u").unwrap(), "http://h/v3/p/x");
        assert_eq!(fill("http://h/AUTH_$(tenant_id)s", Some("p"), "u").unwrap(), "http://h/AUTH_p");
        assert_eq!(fill("http://h/%(user_id)s", None, "u").unwrap(), "http://h/u");
        assert_eq!(fill("http://h/v3", None, "u").unwrap(), "http://h/v3");
        for bad in
            ["http://h/%(project_id)s", "http://h/%(x)s", "http://h/%", "http://h/%(user_id", "$(user_id)"]
        {
            assert_eq!(fill(bad, None, "u"), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(url in ".{0,40}", places in "([%$()s]|user_id|é){0,20}") {
            let _ = fill(&url, None, "u");
            let _ = fill(&places, Some("p"), "u");
        }
    }
}
