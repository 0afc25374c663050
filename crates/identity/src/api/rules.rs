//! The default policy: Keystone 2025's secure defaults, native domain manager persona included (scs-0302).
//!
//! `admin_required` is any `admin`, as upstream; system readers see everything; a domain-scoped manager manages users,
//! groups, projects and grants of the own domain with the roles of `domain_managed_target_role`.

/// Rules by name; operations refer to them by their policy name.
pub const POLICY: &[(&str, &str)] = &[
    ("admin_required", "role:admin"),
    ("admin_or_reader", "rule:admin_required or (role:reader and system_scope:all)"),
    // scs-0302: may never name admin, nor a role that implies it.
    (
        "domain_managed_target_role",
        "'manager':%(target.role.name)s or 'member':%(target.role.name)s or 'reader':%(target.role.name)s or 'load-balancer_member':%(target.role.name)s",
    ),
    ("token_subject", "user_id:%(target.token.user_id)s"),
    ("self", "user_id:%(target.user.id)s"),
    ("reads_user_domain", "role:reader and domain_id:%(target.user.domain_id)s"),
    ("reads_group_domain", "role:reader and domain_id:%(target.group.domain_id)s"),
    ("reads_project_domain", "role:reader and domain_id:%(target.project.domain_id)s"),
    ("manages_user_domain", "role:manager and domain_id:%(target.user.domain_id)s"),
    ("manages_group_domain", "role:manager and domain_id:%(target.group.domain_id)s"),
    ("manages_project_domain", "role:manager and domain_id:%(target.project.domain_id)s"),
    // Actor and place of a grant are both in the token's domain.
    (
        "grant_in_domain",
        "(domain_id:%(target.user.domain_id)s or domain_id:%(target.group.domain_id)s) and (domain_id:%(target.project.domain_id)s or domain_id:%(target.domain.id)s)",
    ),
    ("role_is_usable", "None:%(target.role.domain_id)s or domain_id:%(target.role.domain_id)s"),
    (
        "changes_grant",
        "rule:admin_required or (role:manager and rule:grant_in_domain and rule:domain_managed_target_role)",
    ),
    // Tokens.
    ("identity:check_token", "rule:admin_or_reader or rule:token_subject"),
    ("identity:validate_token", "rule:admin_or_reader or role:service or rule:token_subject"),
    ("identity:revoke_token", "rule:admin_required or rule:token_subject"),
    ("identity:get_auth_catalog", ""),
    ("identity:get_auth_projects", ""),
    ("identity:get_auth_domains", ""),
    ("identity:get_auth_system", ""),
    // Users.
    ("identity:get_user", "rule:admin_or_reader or rule:reads_user_domain or rule:self"),
    ("identity:list_users", "rule:admin_or_reader or (role:reader and domain_id:%(target.domain_id)s)"),
    ("identity:create_user", "rule:admin_required or rule:manages_user_domain"),
    ("identity:update_user", "rule:admin_required or rule:manages_user_domain"),
    ("identity:delete_user", "rule:admin_required or rule:manages_user_domain"),
    ("identity:list_user_projects", "rule:admin_or_reader or rule:reads_user_domain or rule:self"),
    ("identity:list_groups_for_user", "rule:admin_or_reader or rule:reads_user_domain or rule:self"),
    // Groups.
    ("identity:get_group", "rule:admin_or_reader or rule:reads_group_domain"),
    ("identity:list_groups", "rule:admin_or_reader or (role:reader and domain_id:%(target.domain_id)s)"),
    ("identity:create_group", "rule:admin_required or rule:manages_group_domain"),
    ("identity:update_group", "rule:admin_required or rule:manages_group_domain"),
    ("identity:delete_group", "rule:admin_required or rule:manages_group_domain"),
    ("identity:list_users_in_group", "rule:admin_or_reader or rule:reads_group_domain"),
    (
        "identity:check_user_in_group",
        "rule:admin_or_reader or (rule:reads_group_domain and rule:reads_user_domain)",
    ),
    (
        "identity:add_user_to_group",
        "rule:admin_required or (rule:manages_group_domain and rule:manages_user_domain)",
    ),
    (
        "identity:remove_user_from_group",
        "rule:admin_required or (rule:manages_group_domain and rule:manages_user_domain)",
    ),
    // Projects.
    (
        "identity:get_project",
        "rule:admin_or_reader or rule:reads_project_domain or project_id:%(target.project.id)s",
    ),
    ("identity:list_projects", "rule:admin_or_reader or (role:reader and domain_id:%(target.domain_id)s)"),
    ("identity:create_project", "rule:admin_required or rule:manages_project_domain"),
    ("identity:update_project", "rule:admin_required or rule:manages_project_domain"),
    ("identity:delete_project", "rule:admin_required or rule:manages_project_domain"),
    ("identity:list_project_tags", "rule:identity:get_project"),
    ("identity:get_project_tag", "rule:identity:get_project"),
    ("identity:update_project_tags", "rule:identity:update_project"),
    ("identity:create_project_tag", "rule:identity:update_project"),
    ("identity:delete_project_tags", "rule:identity:update_project"),
    ("identity:delete_project_tag", "rule:identity:update_project"),
    // Domains.
    (
        "identity:get_domain",
        "rule:admin_or_reader or domain_id:%(target.domain.id)s or project_domain_id:%(target.domain.id)s",
    ),
    ("identity:list_domains", "rule:admin_or_reader or (role:reader and domain_id:%(target.domain_id)s)"),
    ("identity:create_domain", "rule:admin_required"),
    ("identity:update_domain", "rule:admin_required"),
    ("identity:delete_domain", "rule:admin_required"),
    // Roles.
    (
        "identity:get_role",
        "rule:admin_or_reader or (role:manager and domain_id:%(target.domain_id)s and rule:domain_managed_target_role)",
    ),
    ("identity:list_roles", "rule:admin_or_reader or (role:manager and domain_id:%(target.domain_id)s)"),
    ("identity:create_role", "rule:admin_required"),
    ("identity:update_role", "rule:admin_required"),
    ("identity:delete_role", "rule:admin_required"),
    ("identity:get_implied_role", "rule:admin_or_reader"),
    ("identity:list_implied_roles", "rule:admin_or_reader"),
    ("identity:create_implied_role", "rule:admin_required"),
    ("identity:delete_implied_role", "rule:admin_required"),
    ("identity:list_role_inference_rules", "rule:admin_or_reader"),
    // Grants and assignments.
    (
        "identity:check_grant",
        "rule:admin_or_reader or (role:reader and rule:grant_in_domain and rule:role_is_usable)",
    ),
    ("identity:list_grants", "rule:admin_or_reader or (role:reader and rule:grant_in_domain)"),
    ("identity:create_grant", "rule:changes_grant"),
    ("identity:revoke_grant", "rule:changes_grant"),
    ("identity:check_system_grant", "rule:admin_or_reader"),
    ("identity:list_system_grants", "rule:admin_or_reader"),
    ("identity:create_system_grant", "rule:admin_required"),
    ("identity:revoke_system_grant", "rule:admin_required"),
    (
        "identity:list_role_assignments",
        "rule:admin_or_reader or (role:reader and domain_id:%(target.domain_id)s)",
    ),
    // Application credentials and access rules.
    ("identity:get_application_credential", "rule:admin_or_reader or rule:self"),
    ("identity:list_application_credentials", "rule:admin_or_reader or rule:self"),
    ("identity:create_application_credential", "rule:self"),
    ("identity:delete_application_credential", "rule:admin_required or rule:self"),
    ("identity:get_access_rule", "(role:reader and system_scope:all) or rule:self"),
    ("identity:list_access_rules", "(role:reader and system_scope:all) or rule:self"),
    ("identity:delete_access_rule", "(role:admin and system_scope:all) or rule:self"),
    // Catalog.
    ("identity:get_service", "rule:admin_or_reader"),
    ("identity:list_services", "rule:admin_or_reader"),
    ("identity:create_service", "rule:admin_required"),
    ("identity:update_service", "rule:admin_required"),
    ("identity:delete_service", "rule:admin_required"),
    ("identity:get_endpoint", "rule:admin_or_reader"),
    ("identity:list_endpoints", "rule:admin_or_reader"),
    ("identity:create_endpoint", "rule:admin_required"),
    ("identity:update_endpoint", "rule:admin_required"),
    ("identity:delete_endpoint", "rule:admin_required"),
    ("identity:get_region", ""),
    ("identity:list_regions", ""),
    ("identity:create_region", "rule:admin_required"),
    ("identity:update_region", "rule:admin_required"),
    ("identity:delete_region", "rule:admin_required"),
    ("identity:list_limits", ""),
    ("identity:list_registered_limits", ""),
    ("identity:get_limit_model", ""),
];
