use super::*;
use crate::testing::caller;

fn policy(rule: &str) -> Result<Policy> {
    Policy::for_ops::<()>(&[], &[("x", rule)], None)
}

fn passes(rule: &str, token: &str, target: &Target) -> bool {
    policy(rule).unwrap().allows("x", &caller(token).unwrap(), target)
}

#[test]
fn words_of_the_language() {
    let own = Target::project(&ProjectId::new("p1"));
    for (rule, token, expected) in [
        ("", "member:p1", true),
        ("@", "member:p1", true),
        ("!", "admin", false),
        ("role:member", "member:p1", true),
        ("role:MEMBER", "member:p1", true),
        ("role:admin", "member:p1", false),
        ("not role:admin", "member:p1", true),
        ("role:member and project_id:%(project_id)s", "member:p1", true),
        ("role:member and project_id:%(project_id)s", "member:p2", false),
        ("role:admin or role:member and project_id:%(project_id)s", "member:p1", true),
        ("(role:admin or role:member) and not project_id:%(project_id)s", "member:p1", false),
        ("(role:admin or role:member) and not project_id:%(project_id)s", "member:p2", true),
        ("role:admin OR role:reader", "reader:p1", true),
        ("rule:admin_or_owner", "reader:p1", true),
        ("rule:admin_or_owner", "admin", true),
        ("rule:project_member", "reader:p1", false),
        ("rule:project_member", "manager:p1", true),
        ("is_admin:True", "admin", true),
        ("is_admin:True", "member:p1", false),
        ("system_scope:all", "system-admin", true),
        ("system_scope:all", "admin", false),
        ("'p1':%(project_id)s", "none", true),
        ("'p2':%(project_id)s", "none", false),
        ("None:%(project_id)s", "none", false),
        ("project_id:p1", "member:p1", true),
        ("project_id:%(nothing)s", "member:p1", false),
        ("unheard_of:%(project_id)s", "member:p1", false),
    ] {
        assert_eq!(passes(rule, token, &own), expected, "{rule} for {token}");
    }
}

#[test]
fn nested_keys_and_many_values() {
    let target = Target::none()
        .set("target.user.id", "user-member-p1")
        .many("member_ids", vec!["p1".into(), "p3".into()]);
    let auth = caller("member:p1").unwrap();
    let user = auth.user_id.as_str().to_owned();
    let target = target.set("target.user.id", user);
    assert!(passes("user_id:%(target.user.id)s", "member:p1", &target));
    assert!(passes("project_id:%(member_ids)s", "member:p1", &target));
    assert!(!passes("project_id:%(member_ids)s", "member:p2", &target));
}

#[test]
fn what_is_wrong_is_an_error_of_configuration() {
    for rule in [
        "(",
        ")",
        "role:a role:b",
        "and role:a",
        "role:a and",
        "nonsense",
        "rule:unknown",
        "not",
        "()",
        "rule:x",
        "http://example/x",
        "x:%(a",
        "x:a%(b)s",
        "field:networks:shared=True",
    ] {
        assert!(policy(rule).is_err(), "{rule:?} was taken");
    }
    let circle = Policy::for_ops::<()>(&[], &[("a", "rule:b"), ("b", "rule:a")], None);
    assert!(circle.unwrap_err().public().contains("refers to itself"));
}

#[test]
fn operators_override_by_file() {
    let p = Policy::for_ops::<()>(
        &[],
        &[("x", "!")],
        Some("x: role:member\nadmin_api: [[role:a, role:b], role:c]\n"),
    )
    .unwrap();
    assert!(p.allows("x", &caller("member:p1").unwrap(), &Target::none()));
    assert!(p.texts().contains(&("admin_api", "(role:a and role:b) or (role:c)")));
    for bad in ["y: '@'", "- x", "x: 3", "x: [[1]]", "x: 'role:'  extra: 1\n -", "{"] {
        assert!(Policy::for_ops::<()>(&[], &[("x", "!")], Some(bad)).is_err(), "{bad}");
    }
    assert!(Policy::for_ops::<()>(&[], &[("x", "!")], Some("")).is_ok());
}

#[test]
fn before_the_target_is_known_only_the_hopeless_are_refused() {
    let p = policy("role:member and project_id:%(project_id)s").unwrap();
    assert!(p.might_allow("x", &caller("member:p9").unwrap()));
    assert!(!p.might_allow("x", &caller("reader:p9").unwrap()));
    assert!(!p.might_allow("no_such_rule", &caller("admin").unwrap()));
    let p = policy("not project_id:%(project_id)s").unwrap();
    assert!(p.might_allow("x", &caller("reader:p9").unwrap()));
}

#[test]
fn deep_rules_do_not_break_the_stack() {
    assert!(policy(&format!("{}role:a{}", "(".repeat(5000), ")".repeat(5000))).is_err());
    assert!(policy(&"not ".repeat(5000)).is_err());
    assert!(policy(&"a".repeat(70_000)).is_err());
}

#[test]
fn operations_that_share_a_name_share_a_rule() {
    use crate::{Ctx, Op, Reply, Request};
    async fn nothing(_: Ctx<()>, _: Request<()>) -> Result<Reply> {
        Ok(Reply::empty())
    }
    let get = || Op::get("/a", "a", nothing);
    let put = || Op::put("/a", "a", nothing);
    let rule = |ops: &[Op<()>], rules| {
        let policy = Policy::for_ops(ops, rules, None).unwrap();
        policy.texts().into_iter().find(|(n, _)| *n == "a").unwrap().1.to_owned()
    };
    assert_eq!(rule(&[get()], &[]), "rule:project_reader_or_admin");
    assert_eq!(rule(&[get(), put()], &[]), "rule:project_member_or_admin");
    assert_eq!(rule(&[get(), put().default_rule("@")], &[]), "@");
    assert_eq!(rule(&[put().default_rule("@")], &[("a", "!")]), "!");
    assert!(Policy::for_ops(&[get().default_rule("!"), put().default_rule("@")], &[], None).is_err());
    assert!(
        Policy::for_ops(&[get()], &[], None)
            .unwrap()
            .sample()
            .contains("#\"a\": \"rule:project_reader_or_admin\"\n")
    );
}

proptest::proptest! {
    #[test]
    fn the_parser_never_panics(text in ".{0,200}") {
        let _ = parse::parse(&text);
    }

    #[test]
    fn the_parser_never_panics_on_its_own_words(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "(", ")", "and", "or", "not", "role:a", "@", "!", "rule:admin_api", "'a':%(b)s", "x:%(y)s", "%(", ")s", ":", "'", "\"",
        ]), 0..40),
    ) {
        let _ = parse::parse(&words.join(" "));
        let _ = parse::parse(&words.concat());
    }

    #[test]
    fn what_passes_with_a_target_was_not_refused_without(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "and", "or", "not", "role:member", "role:admin", "@", "!", "project_id:%(project_id)s", "(", ")",
        ]), 1..12),
    ) {
        if let Ok(p) = policy(&words.join(" ")) {
            let target = Target::project(&ProjectId::new("p1"));
            for token in ["member:p1", "member:p2", "reader:p1", "admin"] {
                let auth = caller(token).unwrap();
                if p.allows("x", &auth, &target) {
                    proptest::prop_assert!(p.might_allow("x", &auth));
                }
            }
        }
    }
}
