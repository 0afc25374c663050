//! The table of all operations of the block storage service. Each is there twice: with the project in its path and
//! without (3.67).

pub(crate) mod actions;
mod attachments;
pub(crate) mod common;
mod metadata;
mod misc;
mod quotas;
mod snapshots;
mod transfers;
mod types;
mod view;
mod volumes;

use ::api::Op;

use crate::State;
use metadata::Of;

pub(crate) use volumes::remove;

/// Rules that no single operation owns.
pub(crate) const RULES: &[(&str, &str)] = &[("volume:force_delete", "rule:admin_api")];

const ADMIN: &str = "rule:admin_api";
const ANYONE: &str = "role:reader or rule:context_is_admin";

/// Collects operations in both forms.
struct Table(Vec<Op<State>>);

impl Table {
    fn add(&mut self, path: &str, make: impl Fn(String) -> Op<State>) -> &mut Self {
        self.0.push(make(format!("/v3{path}")));
        self.0.push(make(format!("/v3/{{project_id}}{path}")));
        self
    }
}

/// All operations.
pub fn ops() -> Vec<Op<State>> {
    let mut table = Table(::api::versions::cinder());
    volume_ops(&mut table);
    action_ops(&mut table);
    admin_actions(&mut table);
    snapshot_ops(&mut table);
    metadata_ops(&mut table);
    attachment_ops(&mut table);
    type_ops(&mut table);
    spec_ops(&mut table);
    quota_ops(&mut table);
    transfer_ops(&mut table);
    misc_ops(&mut table);
    table.0
}

fn volume_ops(t: &mut Table) {
    t.add("/volumes", |p| Op::get(p, "volume:get_all", volumes::list).summary("List volumes"))
        .add("/volumes/detail", |p| {
            Op::get(p, "volume:get_all", volumes::detail).summary("List volumes with details")
        })
        .add("/volumes/summary", |p| {
            Op::get(p, "volume:get_all", volumes::summary).since(3, 12).summary("Sum up volumes")
        })
        .add("/volumes", |p| {
            Op::post(p, "volume:create", volumes::create).status(202).summary("Create a volume")
        })
        .add("/volumes/{volume_id}", |p| Op::get(p, "volume:get", volumes::show).summary("Show a volume"))
        .add("/volumes/{volume_id}", |p| {
            Op::put(p, "volume:update", volumes::update).summary("Update a volume")
        })
        .add("/volumes/{volume_id}", |p| {
            Op::delete(p, "volume:delete", volumes::delete).status(202).summary("Delete a volume")
        });
}

const VOLUME_ACTION: &str = "/volumes/{volume_id}/action";

fn action_ops(t: &mut Table) {
    let on = VOLUME_ACTION;
    t.add(on, |p| {
        Op::action(p, "os-attach", "volume_extension:volume_actions:attach", actions::attach).status(202)
    })
    .add(on, |p| {
        Op::action(p, "os-detach", "volume_extension:volume_actions:detach", actions::detach).status(202)
    })
    .add(on, |p| {
        Op::action(p, "os-reserve", "volume_extension:volume_actions:reserve", actions::reserve).status(202)
    })
    .add(on, |p| {
        Op::action(p, "os-unreserve", "volume_extension:volume_actions:unreserve", actions::unreserve)
            .status(202)
    })
    .add(on, |p| {
        let rule = "volume_extension:volume_actions:begin_detaching";
        Op::action(p, "os-begin_detaching", rule, actions::begin_detaching).status(202)
    })
    .add(on, |p| {
        let rule = "volume_extension:volume_actions:roll_detaching";
        Op::action(p, "os-roll_detaching", rule, actions::roll_detaching).status(202)
    })
    .add(on, |p| Op::action(p, "os-extend", "volume:extend", actions::extend).status(202))
    .add(on, |p| Op::action(p, "os-set_bootable", "volume:update", actions::set_bootable))
    .add(on, |p| {
        Op::action(p, "os-update_readonly_flag", "volume:update_readonly_flag", actions::update_readonly)
            .status(202)
    })
    .add(on, |p| Op::action(p, "os-retype", "volume:retype", actions::retype).status(202))
    .add(on, |p| {
        let rule = "volume_extension:volume_image_metadata:set";
        Op::action(p, "os-set_image_metadata", rule, actions::set_image_metadata)
    })
    .add(on, |p| {
        let rule = "volume_extension:volume_image_metadata:show";
        let op = Op::action(p, "os-show_image_metadata", rule, actions::show_image_metadata);
        op.default_rule("rule:project_reader_or_admin")
    })
    .add(on, |p| {
        let rule = "volume_extension:volume_image_metadata:remove";
        Op::action(p, "os-unset_image_metadata", rule, actions::unset_image_metadata)
    });
}

fn admin_actions(t: &mut Table) {
    let on = VOLUME_ACTION;
    t.add(on, |p| {
        let rule = "volume_extension:volume_admin_actions:reset_status";
        Op::action(p, "os-reset_status", rule, actions::reset_status).default_rule(ADMIN).status(202)
    })
    .add(on, |p| {
        let rule = "volume_extension:volume_admin_actions:force_delete";
        Op::action(p, "os-force_delete", rule, actions::force_delete).default_rule(ADMIN).status(202)
    })
    .add(on, |p| {
        let rule = "volume_extension:volume_admin_actions:force_detach";
        Op::action(p, "os-force_detach", rule, actions::force_detach).default_rule(ADMIN).status(202)
    })
    .add("/snapshots/{snapshot_id}/action", |p| {
        let rule = "volume_extension:snapshot_admin_actions:reset_status";
        Op::action(p, "os-reset_status", rule, snapshots::reset_status).default_rule(ADMIN).status(202)
    })
    .add("/snapshots/{snapshot_id}/action", |p| {
        let rule = "volume_extension:snapshot_admin_actions:force_delete";
        Op::action(p, "os-force_delete", rule, snapshots::force_delete).default_rule(ADMIN).status(202)
    });
}

fn snapshot_ops(t: &mut Table) {
    t.add("/snapshots", |p| {
        Op::get(p, "volume:get_all_snapshots", snapshots::list).summary("List snapshots")
    })
    .add("/snapshots/detail", |p| {
        Op::get(p, "volume:get_all_snapshots", snapshots::detail).summary("List snapshots with details")
    })
    .add("/snapshots", |p| {
        Op::post(p, "volume:create_snapshot", snapshots::create).status(202).summary("Create a snapshot")
    })
    .add("/snapshots/{snapshot_id}", |p| {
        Op::get(p, "volume:get_snapshot", snapshots::show).summary("Show a snapshot")
    })
    .add("/snapshots/{snapshot_id}", |p| {
        Op::put(p, "volume:update_snapshot", snapshots::update).summary("Update a snapshot")
    })
    .add("/snapshots/{snapshot_id}", |p| {
        Op::delete(p, "volume:delete_snapshot", snapshots::delete).status(202).summary("Delete a snapshot")
    });
}

fn metadata_ops(t: &mut Table) {
    for (base, of, get, set, drop) in [
        (
            "/volumes/{volume_id}/metadata",
            Of::Volume,
            "volume:get_volume_metadata",
            "volume:update_volume_metadata",
            "volume:delete_volume_metadata",
        ),
        (
            "/snapshots/{snapshot_id}/metadata",
            Of::Snapshot,
            "volume:get_snapshot_metadata",
            "volume:update_snapshot_metadata",
            "volume:delete_snapshot_metadata",
        ),
    ] {
        let item = format!("{base}/{{key}}");
        t.add(base, |p| Op::get(p, get, move |cx, req| metadata::list(cx, req, of)))
            .add(base, |p| Op::post(p, set, move |cx, req| metadata::set(cx, req, of, false)))
            .add(base, |p| Op::put(p, set, move |cx, req| metadata::set(cx, req, of, true)))
            .add(&item, |p| Op::get(p, get, move |cx, req| metadata::item(cx, req, of)))
            .add(&item, |p| Op::put(p, set, move |cx, req| metadata::set_item(cx, req, of)))
            .add(&item, |p| {
                Op::delete(p, drop, move |cx, req| metadata::delete_item(cx, req, of)).status(200)
            });
    }
}

fn attachment_ops(t: &mut Table) {
    t.add("/attachments", |p| Op::get(p, "volume:attachment_get_all", attachments::list).since(3, 27))
        .add("/attachments/detail", |p| {
            Op::get(p, "volume:attachment_get_all", attachments::detail).since(3, 27)
        })
        .add("/attachments", |p| Op::post(p, "volume:attachment_create", attachments::create).since(3, 27))
        .add("/attachments/{attachment_id}", |p| {
            Op::get(p, "volume:attachment_get", attachments::show).since(3, 27)
        })
        .add("/attachments/{attachment_id}", |p| {
            Op::put(p, "volume:attachment_update", attachments::update).since(3, 27)
        })
        .add("/attachments/{attachment_id}", |p| {
            Op::delete(p, "volume:attachment_delete", attachments::delete).since(3, 27).status(200)
        })
        .add("/attachments/{attachment_id}/action", |p| {
            let rule = "volume:attachment_complete";
            Op::action(p, "os-complete", rule, attachments::complete).since(3, 44).status(204)
        });
}

fn type_ops(t: &mut Table) {
    let manage = "volume_extension:types_manage";
    t.add("/types", |p| Op::get(p, "volume_extension:type_get_all", types::list).default_rule(ANYONE))
        .add("/types/default", |p| Op::get(p, "volume_extension:type_get", types::show).default_rule(ANYONE))
        .add("/types/{type_id}", |p| {
            Op::get(p, "volume_extension:type_get", types::show).default_rule(ANYONE)
        })
        .add("/types", |p| Op::post(p, manage, types::create).default_rule(ADMIN))
        .add("/types/{type_id}", |p| Op::put(p, manage, types::update).default_rule(ADMIN))
        .add("/types/{type_id}", |p| Op::delete(p, manage, types::delete).default_rule(ADMIN).status(202))
        .add("/types/{type_id}/encryption", |p| {
            Op::get(p, "volume_extension:volume_type_encryption", types::encryption).default_rule(ADMIN)
        })
        .add("/types/{type_id}/os-volume-type-access", |p| {
            Op::get(p, "volume_extension:volume_type_access:get_all_for_type", types::access)
                .default_rule(ADMIN)
        })
        .add("/types/{type_id}/action", |p| {
            let rule = "volume_extension:volume_type_access:addProjectAccess";
            Op::action(p, "addProjectAccess", rule, types::add_access).default_rule(ADMIN).status(202)
        })
        .add("/types/{type_id}/action", |p| {
            let rule = "volume_extension:volume_type_access:removeProjectAccess";
            Op::action(p, "removeProjectAccess", rule, types::remove_access).default_rule(ADMIN).status(202)
        });
}

fn spec_ops(t: &mut Table) {
    let (base, item) = ("/types/{type_id}/extra_specs", "/types/{type_id}/extra_specs/{key}");
    t.add(base, |p| {
        Op::get(p, "volume_extension:types_extra_specs:index", types::list_specs).default_rule(ANYONE)
    })
    .add(base, |p| {
        Op::post(p, "volume_extension:types_extra_specs:create", types::add_specs).default_rule(ADMIN)
    })
    .add(item, |p| {
        Op::get(p, "volume_extension:types_extra_specs:show", types::show_spec).default_rule(ANYONE)
    })
    .add(item, |p| {
        Op::put(p, "volume_extension:types_extra_specs:update", types::set_spec).default_rule(ADMIN)
    })
    .add(item, |p| {
        let rule = "volume_extension:types_extra_specs:delete";
        Op::delete(p, rule, types::delete_spec).default_rule(ADMIN).status(202)
    });
}

fn quota_ops(t: &mut Table) {
    let (base, class) = ("/os-quota-sets/{target}", "/os-quota-class-sets/{class}");
    t.add("/limits", |p| Op::get(p, "limits_extension:used_limits", quotas::limits))
        .add(base, |p| Op::get(p, "volume_extension:quotas:show", quotas::show))
        .add("/os-quota-sets/{target}/defaults", |p| {
            Op::get(p, "volume_extension:quotas:show", quotas::defaults)
        })
        .add(base, |p| Op::put(p, "volume_extension:quotas:update", quotas::update).default_rule(ADMIN))
        .add(base, |p| {
            Op::delete(p, "volume_extension:quotas:delete", quotas::delete).default_rule(ADMIN).status(200)
        })
        .add(class, |p| {
            Op::get(p, "volume_extension:quota_classes:get", quotas::show_class).default_rule(ADMIN)
        })
        .add(class, |p| {
            Op::put(p, "volume_extension:quota_classes:update", quotas::update_class).default_rule(ADMIN)
        });
}

fn transfer_ops(t: &mut Table) {
    for root in ["/volume-transfers", "/os-volume-transfer"] {
        let since = if root == "/volume-transfers" { 55 } else { 0 };
        let (one, accept) = (format!("{root}/{{transfer_id}}"), format!("{root}/{{transfer_id}}/accept"));
        t.add(root, |p| {
            Op::get(p, "volume:get_all_transfers", |cx, req| transfers::list(cx, req, false)).since(3, since)
        })
        .add(&format!("{root}/detail"), |p| {
            Op::get(p, "volume:get_all_transfers", |cx, req| transfers::list(cx, req, true)).since(3, since)
        })
        .add(root, |p| Op::post(p, "volume:create_transfer", transfers::create).since(3, since).status(202))
        .add(&one, |p| Op::get(p, "volume:get_transfer", transfers::show).since(3, since))
        .add(&one, |p| Op::delete(p, "volume:delete_transfer", transfers::delete).since(3, since).status(202))
        .add(&accept, |p| {
            Op::post(p, "volume:accept_transfer", transfers::accept).since(3, since).status(202)
        });
    }
}

fn misc_ops(t: &mut Table) {
    t.add("/os-availability-zone", |p| {
        Op::get(p, "volume:availability_zone_list", misc::zones).default_rule(ANYONE)
    })
    .add("/extensions", |p| Op::get(p, "volume:extension_list", misc::extensions).default_rule(ANYONE))
    .add("/extensions/{alias}", |p| {
        Op::get(p, "volume:extension_list", misc::show_extension).default_rule(ANYONE)
    })
    .add("/os-services", |p| {
        Op::get(p, "volume_extension:services:index", misc::services).default_rule(ADMIN)
    })
    .add("/os-hosts", |p| Op::get(p, "volume_extension:hosts", misc::list_hosts).default_rule(ADMIN))
    .add("/scheduler-stats/get_pools", |p| {
        Op::get(p, "scheduler_extension:scheduler_stats:get_pools", misc::pools).default_rule(ADMIN)
    });
}
