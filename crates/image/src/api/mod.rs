//! The table of all operations of the image service.

mod data;
mod images;
mod import;
mod members;
mod schemas;
mod see;
mod view;

use ::api::{Method, Op};

use crate::State;
use crate::logic::patch;

pub(crate) use data::{abandon, commit};
pub(crate) use see::visible_to;

/// Rules that no single operation owns, and those shared by operations.
pub(crate) const RULES: &[(&str, &str)] = &[
    ("publicize_image", "rule:context_is_admin"),
    ("communitize_image", "rule:project_member_or_admin"),
    ("get_images", "role:reader or rule:context_is_admin"),
    ("get_image", "role:reader or rule:context_is_admin"),
    ("download_image", "role:reader or rule:context_is_admin"),
    ("get_members", "role:reader or rule:context_is_admin"),
    ("get_member", "role:reader or rule:context_is_admin"),
    ("modify_member", "(role:member and project_id:%(member_id)s) or rule:context_is_admin"),
];

/// All operations.
pub fn ops() -> Vec<Op<State>> {
    let mut ops = image_ops();
    ops.extend(member_ops());
    ops.extend(discovery_ops());
    ops
}

fn image_ops() -> Vec<Op<State>> {
    const PATCH: &[&str] = &[patch::V2_1, patch::V2_0];
    const BYTES: &[&str] = &["application/octet-stream"];
    vec![
        Op::get("/v2/images", "get_images", images::list).summary("List images"),
        Op::post("/v2/images", "add_image", images::create).status(201).summary("Create an image"),
        Op::get("/v2/images/{image_id}", "get_image", images::show).summary("Show an image"),
        Op::patch("/v2/images/{image_id}", "modify_image", images::update)
            .consumes(PATCH)
            .summary("Update an image"),
        Op::delete("/v2/images/{image_id}", "delete_image", images::delete).summary("Delete an image"),
        Op::put("/v2/images/{image_id}/tags/{tag}", "modify_image", images::add_tag)
            .status(204)
            .summary("Add a tag"),
        Op::delete("/v2/images/{image_id}/tags/{tag}", "modify_image", images::delete_tag)
            .summary("Remove a tag"),
        Op::post("/v2/images/{image_id}/actions/deactivate", "deactivate", images::deactivate)
            .status(204)
            .summary("Stop handing out an image's data"),
        Op::post("/v2/images/{image_id}/actions/reactivate", "reactivate", images::reactivate)
            .status(204)
            .summary("Hand out an image's data again"),
        Op::raw(Method::PUT, "/v2/images/{image_id}/file", "upload_image", data::upload)
            .consumes(BYTES)
            .status(204)
            .summary("Upload image data"),
        Op::get("/v2/images/{image_id}/file", "download_image", data::download)
            .summary("Download image data"),
        Op::raw(Method::PUT, "/v2/images/{image_id}/stage", "upload_image", import::stage)
            .consumes(BYTES)
            .status(204)
            .summary("Upload image data to the staging area"),
        Op::post("/v2/images/{image_id}/import", "import_image", import::import)
            .status(202)
            .summary("Import staged image data"),
        Op::get("/v2/images/{image_id}/tasks", "get_image", import::tasks).summary("List tasks of an image"),
    ]
}

fn member_ops() -> Vec<Op<State>> {
    vec![
        Op::get("/v2/images/{image_id}/members", "get_members", members::list)
            .summary("List members of an image"),
        Op::post("/v2/images/{image_id}/members", "add_member", members::create).summary("Share an image"),
        Op::get("/v2/images/{image_id}/members/{member_id}", "get_member", members::show)
            .summary("Show a member"),
        Op::put("/v2/images/{image_id}/members/{member_id}", "modify_member", members::update)
            .summary("Accept or reject an image"),
        Op::delete("/v2/images/{image_id}/members/{member_id}", "delete_member", members::delete)
            .summary("Stop sharing an image"),
    ]
}

fn discovery_ops() -> Vec<Op<State>> {
    let any = "role:reader or rule:context_is_admin";
    let mut ops = ::api::versions::glance();
    ops.extend([
        Op::get("/v2/info/import", "get_import_info", import::info)
            .default_rule(any)
            .summary("Import methods"),
        Op::get("/v2/info/stores", "get_store_info", import::stores).default_rule(any).summary("Stores"),
    ]);
    for name in schemas::NAMES {
        let op = Op::get(format!("/v2/schemas/{name}"), "get_schemas", move |cx, req| {
            schemas::show(cx, req, name)
        });
        ops.push(op.default_rule("@").summary("A JSON schema"));
    }
    ops
}
