//! Server groups.

use serde_json::{Value, json};

use super::Lab;

const ALL: &str = "/v2.1/os-server-groups";

fn new(policy: &str) -> Value {
    json!({"server_group": {"name": "g", "policy": policy}})
}

fn old(policies: Value) -> Value {
    json!({"server_group": {"name": "g", "policies": policies}})
}

#[tokio::test]
async fn a_group_from_birth_to_end() {
    let lab = Lab::new().await;
    let own = lab.at("member:p1", "2.96");
    let body = json!({"server_group": {
        "name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": "2"},
    }});
    let made = own.post(ALL, body).await.expect(200);
    assert_eq!(made.at("/server_group/rules"), json!({"max_server_per_host": 2}));
    assert_eq!(made.at("/server_group/project_id"), "p1");
    let id = made.text_at("/server_group/id");
    let path = format!("{ALL}/{id}");
    let group = id.parse().unwrap();
    let member = lab.server(1, |s| s.group_id = Some(group)).await;
    let _ = lab
        .server(2, |s| {
            s.group_id = Some(group);
            s.deleting = true;
        })
        .await;
    let shown = own.get(&path).await.expect(200);
    assert_eq!(shown.at("/server_group/members"), json!([member.id]));
    let other = lab.at("member:p2", "2.96");
    let hidden = other.get(&path).await.expect(404);
    assert_eq!(hidden.at("/itemNotFound/message"), format!("Instance group {id} could not be found."));
    let _ = other.delete(&path).await.expect(404);
    let _ = lab.at("reader:p1", "2.96").delete(&path).await.expect(403);
    assert_eq!(other.get(ALL).await.expect(200).json(), json!({"server_groups": []}));
    let _ = other.get(&format!("{ALL}?all_projects=1")).await.expect(200);
    let every = lab.at("admin", "2.96").get(&format!("{ALL}?all_projects=1")).await.expect(200);
    assert_eq!(every.at("/server_groups/0/id"), json!(id));
    let _ = own.delete(&path).await.expect(204);
    let _ = own.delete(&path).await.expect(404);
}

#[tokio::test]
async fn what_versions_have() {
    let lab = Lab::new().await;
    let at = |version: &str| lab.at("member:p1", version);
    let made = at("2.1").post(ALL, old(json!(["affinity"]))).await.expect(200);
    assert_eq!(made.at("/server_group/policies"), json!(["affinity"]));
    assert_eq!(made.at("/server_group/metadata"), json!({}));
    assert_eq!(made.at("/server_group/project_id"), Value::Null);
    let path = format!("{ALL}/{}", made.text_at("/server_group/id"));
    let at_2_13 = at("2.13").get(&path).await.expect(200);
    assert_eq!(at_2_13.at("/server_group/user_id"), "user-member-p1");
    let _ = at("2.14").post(ALL, old(json!(["soft-affinity"]))).await.expect(400);
    let _ = at("2.15").post(ALL, old(json!(["soft-affinity"]))).await.expect(200);
    let _ = at("2.63").post(ALL, new("affinity")).await.expect(400);
    let _ = at("2.64").post(ALL, old(json!(["affinity"]))).await.expect(400);
    let made = at("2.64").post(ALL, new("soft-anti-affinity")).await.expect(200);
    assert_eq!(made.at("/server_group/policy"), "soft-anti-affinity");
    assert_eq!(made.at("/server_group/rules"), json!({}));
    assert_eq!(made.at("/server_group/policies"), Value::Null);
    for bad in
        [json!([]), json!(["affinity", "anti-affinity"]), json!(["near"]), json!("affinity"), Value::Null]
    {
        let _ = at("2.1").post(ALL, old(bad)).await.expect(400);
    }
    for rules in [json!({"max_server_per_host": 0}), json!({"max_server_per_host": "x"}), json!({"least": 1})]
    {
        let body = json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": rules}});
        let _ = at("2.64").post(ALL, body).await.expect(400);
    }
    let body =
        json!({"server_group": {"name": "g", "policy": "affinity", "rules": {"max_server_per_host": 2}}});
    let refused = at("2.64").post(ALL, body).await.expect(400);
    assert_eq!(refused.at("/badRequest/message"), "Only anti-affinity policy supports rules.");
}

#[tokio::test]
async fn quota_and_pages() {
    let lab = Lab::with(|config| {
        let _ = config.quota.insert("server_groups".into(), 3);
    })
    .await;
    let own = lab.at("member:p1", "2.96");
    for _ in 0..3 {
        let _ = own.post(ALL, new("affinity")).await.expect(200);
    }
    let over = own.post(ALL, new("affinity")).await.expect(403);
    assert_eq!(over.at("/forbidden/message"), "Quota exceeded, too many server groups.");
    for (query, count) in [("", 3), ("?limit=2", 2), ("?offset=2", 1), ("?limit=5&offset=9", 0)] {
        let list = own.get(&format!("{ALL}{query}")).await.expect(200).at("/server_groups");
        assert_eq!(list.as_array().unwrap().len(), count, "{query}");
    }
    for bad in ["limit=-1", "offset=-1", "offset=x", "colour=red"] {
        let _ = own.get(&format!("{ALL}?{bad}")).await.expect(400);
    }
    let _ = lab.at("member:p1", "2.74").get(&format!("{ALL}?colour=red")).await.expect(200);
}
