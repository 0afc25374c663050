//! Access rules: which requests an application credential may make.

/// Types one service is known by: a rule for one is a rule for all.
const ALIASES: &[&[&str]] = &[&["block-storage", "block-store", "volume", "volumev2", "volumev3"]];

/// Whether a rule's service type names this service.
pub fn same_service(rule: &str, service: &str) -> bool {
    rule == service || ALIASES.iter().any(|all| all.contains(&rule) && all.contains(&service))
}

/// Whether a path is of a rule's pattern: `**` stands for anything, `*` and `{name}` for anything without a slash
/// (keystonemiddleware's reading).
pub fn path_matches(pattern: &str, path: &str) -> bool {
    let mut parts = Vec::new();
    let mut rest = pattern;
    let mut literal = String::new();
    while let Some(c) = rest.chars().next() {
        let (part, length) = if rest.starts_with("**") {
            (Some(Part::Anything), 2)
        } else if c == '*' {
            (Some(Part::Segment), 1)
        } else if let (true, Some(end)) = (c == '{', rest.find('}')) {
            (Some(Part::Segment), end + 1)
        } else {
            literal.push(c);
            (None, c.len_utf8())
        };
        if let Some(part) = part {
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    matches(&parts, path)
}

enum Part {
    Literal(String),
    Segment,
    Anything,
}

/// Which positions of the path can be reached after each part: linear in both for a given pattern, however it is made.
fn matches(parts: &[Part], path: &str) -> bool {
    let mut reached = vec![false; path.len() + 1];
    if let Some(start) = reached.first_mut() {
        *start = true;
    }
    for part in parts {
        let mut next = vec![false; path.len() + 1];
        match part {
            Part::Literal(text) => {
                for (at, _) in reached.iter().enumerate().filter(|(_, r)| **r) {
                    if path.get(at..).is_some_and(|rest| rest.starts_with(text.as_str()))
                        && let Some(slot) = next.get_mut(at + text.len())
                    {
                        *slot = true;
                    }
                }
            }
            Part::Segment | Part::Anything => {
                let mut open = false;
                for (at, slot) in next.iter_mut().enumerate() {
                    open |= reached.get(at).copied().unwrap_or(false);
                    // Before a slash a segment ends; what was reached exactly there begins anew.
                    *slot = open;
                    if matches!(part, Part::Segment) && path.as_bytes().get(at) == Some(&b'/') {
                        open = false;
                    }
                }
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_are_keystonemiddlewares() {
        for (pattern, path, expected) in [
            ("/v2.1/servers", "/v2.1/servers", true),
            ("/v2.1/servers", "/v2.1/servers/1", false),
            ("/v2.1/servers/*", "/v2.1/servers/1", true),
            ("/v2.1/servers/*", "/v2.1/servers/1/ips", false),
            ("/v2.1/servers/{id}/ips", "/v2.1/servers/1/ips", true),
            ("/v2.1/servers/{id}/ips", "/v2.1/servers/1/2/ips", false),
            ("/v2.1/**", "/v2.1/servers/1/ips", true),
            ("/**/ips", "/v2.1/servers/1/ips", true),
            ("/v2.1/**", "/v2.0/servers", false),
            ("/v2.1/servers/a*c", "/v2.1/servers/abbc", true),
            ("/{unclosed", "/{unclosed", true),
            ("/", "/", true),
            ("/", "", false),
        ] {
            assert_eq!(path_matches(pattern, path), expected, "{pattern} {path}");
        }
        assert!(same_service("volumev3", "block-storage") && !same_service("compute", "network"));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(pattern in "[a/*{}é]{0,20}", path in "[a/é]{0,20}") {
            let _ = path_matches(&pattern, &path);
        }

        #[test]
        fn two_stars_match_everything(path in ".{0,30}") {
            prop_assert!(path_matches("**", &path));
        }
    }
}
