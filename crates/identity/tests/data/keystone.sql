-- A Keystone 29.1 filled by conformance/fixtures/fill_keystone.py: mariadb-dump --skip-triggers --compact keystone TABLES
/*M!999999\- enable the sandbox mode */ 
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `access_rule` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `service` varchar(64) DEFAULT NULL,
  `path` varchar(128) DEFAULT NULL,
  `method` varchar(16) DEFAULT NULL,
  `external_id` varchar(64) DEFAULT NULL,
  `user_id` varchar(64) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `duplicate_access_rule_for_user_constraint` (`user_id`,`service`,`path`,`method`),
  KEY `user_id` (`user_id`),
  KEY `external_id` (`external_id`)
) ENGINE=InnoDB AUTO_INCREMENT=2 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `access_rule` VALUES (1,'compute','/v2.1/servers','GET','baf8ad4b1e9943168c7ae68023203d93','c9038a969afd41b3bcb3a71e98a3a02b');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `application_credential` (
  `internal_id` int(11) NOT NULL AUTO_INCREMENT,
  `id` varchar(64) NOT NULL,
  `name` varchar(255) NOT NULL,
  `secret_hash` varchar(255) NOT NULL,
  `description` text DEFAULT NULL,
  `user_id` varchar(64) NOT NULL,
  `project_id` varchar(64) DEFAULT NULL,
  `expires_at` bigint(20) DEFAULT NULL,
  `system` varchar(64) DEFAULT NULL,
  `unrestricted` tinyint(1) DEFAULT NULL,
  PRIMARY KEY (`internal_id`),
  UNIQUE KEY `duplicate_app_cred_constraint` (`user_id`,`name`)
) ENGINE=InnoDB AUTO_INCREMENT=3 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `application_credential` VALUES (1,'90657542765b4484a4389f9406465295','robot','$2b$04$1nATqX.C9m/GH3yR.3SsQerya5GKRxjJjLgD2qykjIL25es255os6',NULL,'c9038a969afd41b3bcb3a71e98a3a02b','fd103873db3f49999147e1168555b0eb',NULL,NULL,NULL);
INSERT INTO `application_credential` VALUES (2,'16759e8b5db64ec7b6fb44d6f9a76eca','plain','$2b$04$Ah9UX.QCJQ.Upi2gh7uD5uGduj/jvZ8l2OuhrarsWNxriGvvXcWAK',NULL,'c9038a969afd41b3bcb3a71e98a3a02b','fd103873db3f49999147e1168555b0eb',NULL,NULL,NULL);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `application_credential_access_rule` (
  `application_credential_id` int(11) NOT NULL,
  `access_rule_id` int(11) NOT NULL,
  PRIMARY KEY (`application_credential_id`,`access_rule_id`),
  KEY `access_rule_id` (`access_rule_id`),
  CONSTRAINT `application_credential_access_rule_ibfk_1` FOREIGN KEY (`application_credential_id`) REFERENCES `application_credential` (`internal_id`) ON DELETE CASCADE,
  CONSTRAINT `application_credential_access_rule_ibfk_2` FOREIGN KEY (`access_rule_id`) REFERENCES `access_rule` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `application_credential_access_rule` VALUES (1,1);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `application_credential_role` (
  `application_credential_id` int(11) NOT NULL,
  `role_id` varchar(64) NOT NULL,
  PRIMARY KEY (`application_credential_id`,`role_id`),
  CONSTRAINT `application_credential_role_ibfk_1` FOREIGN KEY (`application_credential_id`) REFERENCES `application_credential` (`internal_id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `application_credential_role` VALUES (1,'b47a5ca9466d41fd8ecac7b8dec1acb9');
INSERT INTO `application_credential_role` VALUES (1,'d643a265a9424f5f8537cd95c562ec6b');
INSERT INTO `application_credential_role` VALUES (2,'b47a5ca9466d41fd8ecac7b8dec1acb9');
INSERT INTO `application_credential_role` VALUES (2,'d643a265a9424f5f8537cd95c562ec6b');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `assignment` (
  `type` enum('UserProject','GroupProject','UserDomain','GroupDomain') NOT NULL,
  `actor_id` varchar(64) NOT NULL,
  `target_id` varchar(64) NOT NULL,
  `role_id` varchar(64) NOT NULL,
  `inherited` tinyint(1) NOT NULL,
  PRIMARY KEY (`type`,`actor_id`,`target_id`,`role_id`,`inherited`),
  KEY `ix_actor_id` (`actor_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `assignment` VALUES ('UserProject','a344e98c4d904936bdb4d151fc8a0560','7cc969470c5241199d72baf36b5a4f13','1a337173b2274d80ba9bc70ac5d3e003',0);
INSERT INTO `assignment` VALUES ('UserProject','c9038a969afd41b3bcb3a71e98a3a02b','fd103873db3f49999147e1168555b0eb','d643a265a9424f5f8537cd95c562ec6b',0);
INSERT INTO `assignment` VALUES ('GroupProject','be52fdf4cd98482fae49a310a3cd694f','67a7ab1da31548d6834858a015a64f9a','2dee5a598c8d46429e1ff3bc8bfc0a8b',0);
INSERT INTO `assignment` VALUES ('UserDomain','56249397908a401f869aae19c5892a0a','c3d1effe4ac24d108edc9041160730c3','654032bb62ef47859b032a2326bad431',0);
INSERT INTO `assignment` VALUES ('UserDomain','56249397908a401f869aae19c5892a0a','c3d1effe4ac24d108edc9041160730c3','b47a5ca9466d41fd8ecac7b8dec1acb9',1);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `credential` (
  `id` varchar(64) NOT NULL,
  `user_id` varchar(64) NOT NULL,
  `project_id` varchar(64) DEFAULT NULL,
  `type` varchar(255) NOT NULL,
  `extra` text DEFAULT NULL,
  `key_hash` varchar(64) NOT NULL,
  `encrypted_blob` text NOT NULL,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `credential` VALUES ('6d47702b4d7f46b3a5f622191d7e53ce','c9038a969afd41b3bcb3a71e98a3a02b',NULL,'totp','{}','a03c765f5b170148636da5dd24bb8a3f05bba6e3','gAAAAABrAdUCEBrMBDBt2NLw3pvMq8nv4HynhxPUtuB0U1JgLHR_xZfvioUxOX8s5U2x-AduGzP8HmLbx9hkDlLxyEf5qwGxRN6q_txyfIiymZl1L6U23t4=');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `endpoint` (
  `id` varchar(64) NOT NULL,
  `legacy_endpoint_id` varchar(64) DEFAULT NULL,
  `interface` varchar(8) NOT NULL,
  `service_id` varchar(64) NOT NULL,
  `url` text NOT NULL,
  `extra` text DEFAULT NULL,
  `enabled` tinyint(1) NOT NULL DEFAULT 1,
  `region_id` varchar(255) DEFAULT NULL,
  PRIMARY KEY (`id`),
  KEY `fk_endpoint_region_id` (`region_id`),
  KEY `service_id` (`service_id`),
  CONSTRAINT `endpoint_service_id_fkey` FOREIGN KEY (`service_id`) REFERENCES `service` (`id`),
  CONSTRAINT `fk_endpoint_region_id` FOREIGN KEY (`region_id`) REFERENCES `region` (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `endpoint` VALUES ('006df51ad0c6428389fab33ff1f15758',NULL,'public','d469ad25d65f442fa3ad11fa370667e9','http://127.0.0.1:5000/v3','{}',1,'RegionOne');
INSERT INTO `endpoint` VALUES ('ef149dfabec14503a5b4f293a3bc1869',NULL,'public','4c62233779f944d29fa981df62e351c9','http://nova/v2.1/%(project_id)s','{}',1,'RegionOne');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `group` (
  `id` varchar(64) NOT NULL,
  `domain_id` varchar(64) NOT NULL,
  `name` varchar(64) NOT NULL,
  `description` text DEFAULT NULL,
  `extra` text DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `ixu_group_name_domain_id` (`domain_id`,`name`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `group` VALUES ('be52fdf4cd98482fae49a310a3cd694f','c3d1effe4ac24d108edc9041160730c3','team','','{}');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `implied_role` (
  `prior_role_id` varchar(64) NOT NULL,
  `implied_role_id` varchar(64) NOT NULL,
  PRIMARY KEY (`prior_role_id`,`implied_role_id`),
  KEY `implied_role_implied_role_id_fkey` (`implied_role_id`),
  CONSTRAINT `implied_role_implied_role_id_fkey` FOREIGN KEY (`implied_role_id`) REFERENCES `role` (`id`) ON DELETE CASCADE,
  CONSTRAINT `implied_role_prior_role_id_fkey` FOREIGN KEY (`prior_role_id`) REFERENCES `role` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `implied_role` VALUES ('1a337173b2274d80ba9bc70ac5d3e003','654032bb62ef47859b032a2326bad431');
INSERT INTO `implied_role` VALUES ('2dee5a598c8d46429e1ff3bc8bfc0a8b','b47a5ca9466d41fd8ecac7b8dec1acb9');
INSERT INTO `implied_role` VALUES ('654032bb62ef47859b032a2326bad431','d643a265a9424f5f8537cd95c562ec6b');
INSERT INTO `implied_role` VALUES ('d643a265a9424f5f8537cd95c562ec6b','b47a5ca9466d41fd8ecac7b8dec1acb9');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `local_user` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `user_id` varchar(64) NOT NULL,
  `domain_id` varchar(64) NOT NULL,
  `name` varchar(255) NOT NULL,
  `failed_auth_count` int(11) DEFAULT NULL,
  `failed_auth_at` datetime DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `domain_id` (`domain_id`,`name`),
  UNIQUE KEY `user_id` (`user_id`),
  KEY `local_user_user_id_fkey` (`user_id`,`domain_id`),
  CONSTRAINT `local_user_user_id_fkey` FOREIGN KEY (`user_id`, `domain_id`) REFERENCES `user` (`id`, `domain_id`) ON DELETE CASCADE ON UPDATE CASCADE
) ENGINE=InnoDB AUTO_INCREMENT=6 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `local_user` VALUES (1,'a344e98c4d904936bdb4d151fc8a0560','default','admin',0,NULL);
INSERT INTO `local_user` VALUES (2,'c9038a969afd41b3bcb3a71e98a3a02b','default','bcrypt',0,NULL);
INSERT INTO `local_user` VALUES (3,'ac9e6d5d76894d54927506e116a74fa7','default','bcrypt_sha256',0,NULL);
INSERT INTO `local_user` VALUES (4,'56249397908a401f869aae19c5892a0a','default','scrypt',0,NULL);
INSERT INTO `local_user` VALUES (5,'4aff276953484abbb3cabe2bd8624a21','default','pbkdf2_sha512',0,NULL);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `nonlocal_user` (
  `domain_id` varchar(64) NOT NULL,
  `name` varchar(255) NOT NULL,
  `user_id` varchar(64) NOT NULL,
  PRIMARY KEY (`domain_id`,`name`),
  UNIQUE KEY `ixu_nonlocal_user_user_id` (`user_id`),
  KEY `nonlocal_user_user_id_fkey` (`user_id`,`domain_id`),
  CONSTRAINT `nonlocal_user_user_id_fkey` FOREIGN KEY (`user_id`, `domain_id`) REFERENCES `user` (`id`, `domain_id`) ON DELETE CASCADE ON UPDATE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `federated_user` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `user_id` varchar(64) NOT NULL,
  `idp_id` varchar(64) NOT NULL,
  `protocol_id` varchar(64) NOT NULL,
  `unique_id` varchar(255) NOT NULL,
  `display_name` varchar(255) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `idp_id` (`idp_id`,`protocol_id`,`unique_id`),
  KEY `federated_user_protocol_id_fkey` (`protocol_id`,`idp_id`),
  KEY `user_id` (`user_id`),
  CONSTRAINT `federated_user_ibfk_1` FOREIGN KEY (`user_id`) REFERENCES `user` (`id`) ON DELETE CASCADE,
  CONSTRAINT `federated_user_ibfk_2` FOREIGN KEY (`idp_id`) REFERENCES `identity_provider` (`id`) ON DELETE CASCADE,
  CONSTRAINT `federated_user_protocol_id_fkey` FOREIGN KEY (`protocol_id`, `idp_id`) REFERENCES `federation_protocol` (`id`, `idp_id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `password` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  `local_user_id` int(11) NOT NULL,
  `expires_at` datetime DEFAULT NULL,
  `self_service` tinyint(1) NOT NULL DEFAULT 0,
  `password_hash` varchar(255) DEFAULT NULL,
  `created_at_int` bigint(20) NOT NULL DEFAULT 0,
  `expires_at_int` bigint(20) DEFAULT NULL,
  `created_at` datetime NOT NULL,
  PRIMARY KEY (`id`),
  KEY `local_user_id` (`local_user_id`),
  CONSTRAINT `password_ibfk_1` FOREIGN KEY (`local_user_id`) REFERENCES `local_user` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB AUTO_INCREMENT=7 DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `password` VALUES (1,1,NULL,0,'$2b$04$9wlrJObJ8jfT3yi7FkfyXu5i2zD7Oeaa5DwnHHez89w7uhbsmkPPW',1795281975215082,NULL,'2026-11-21 17:26:15');
INSERT INTO `password` VALUES (2,2,'2026-11-21 17:28:47',0,'$2b$04$Rc.dWqeYnIYzb3sera8QEeNDXSZCBsXd/gT2w/XPGXxOiqLCeUeLK',1795282106697792,1795282127750023,'2026-11-21 17:28:26');
INSERT INTO `password` VALUES (3,3,NULL,0,'$bcrypt-sha256$v=2,t=2b,r=4$xFmCX8OPi9XkO/4wMLdbae$sqRmwZJ/rSwCocARey.N6Vk/zQqGacC',1795282112105275,NULL,'2026-11-21 17:28:32');
INSERT INTO `password` VALUES (4,4,NULL,0,'$scrypt$ln=16,r=8,p=1$9omlixMm6ZUJt0vUUScarw$WH7eAD3VV5mkGDbWulbv5y4KvXiNqWf6K5zz5mondCE',1795282115971021,NULL,'2026-11-21 17:28:35');
INSERT INTO `password` VALUES (5,5,NULL,0,'$pbkdf2-sha512$10$Oz6kvFxsulkAh4ZOjUfwTw$jJiEPAtiz5+by2MzoPJf6qRhQ8gKT3inZUOheLOQVzkNYb+JHtNwe9QcYEIJIKlW7yZ1ltqiT/5G8gIq7rqbJQ',1795282123530336,NULL,'2026-11-21 17:28:43');
INSERT INTO `password` VALUES (6,2,NULL,0,'$2b$04$D1YQSPc03aArdMyRKmEuQOese6ZsmgI4EfbpYAv32/VsCw5Vpemwa',1795282127750023,NULL,'2026-11-21 17:28:47');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `project` (
  `id` varchar(64) NOT NULL,
  `name` varchar(64) NOT NULL,
  `extra` text DEFAULT NULL,
  `description` text DEFAULT NULL,
  `enabled` tinyint(1) DEFAULT NULL,
  `domain_id` varchar(64) NOT NULL,
  `parent_id` varchar(64) DEFAULT NULL,
  `is_domain` tinyint(1) NOT NULL DEFAULT 0,
  PRIMARY KEY (`id`),
  UNIQUE KEY `ixu_project_name_domain_id` (`domain_id`,`name`),
  KEY `project_parent_id_fkey` (`parent_id`),
  CONSTRAINT `project_domain_id_fkey` FOREIGN KEY (`domain_id`) REFERENCES `project` (`id`),
  CONSTRAINT `project_parent_id_fkey` FOREIGN KEY (`parent_id`) REFERENCES `project` (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `project` VALUES ('67a7ab1da31548d6834858a015a64f9a','parent','{}','',1,'c3d1effe4ac24d108edc9041160730c3','c3d1effe4ac24d108edc9041160730c3',0);
INSERT INTO `project` VALUES ('7cc969470c5241199d72baf36b5a4f13','admin','{}','Bootstrap project for initializing the cloud.',1,'default','default',0);
INSERT INTO `project` VALUES ('<<keystone.domain.root>>','<<keystone.domain.root>>','{}','',0,'<<keystone.domain.root>>',NULL,1);
INSERT INTO `project` VALUES ('c3d1effe4ac24d108edc9041160730c3','Kunden','{}','Kund*innen; \'quoted\' \\ and \"double\"',1,'<<keystone.domain.root>>',NULL,1);
INSERT INTO `project` VALUES ('default','Default','{}','The default domain',1,'<<keystone.domain.root>>',NULL,1);
INSERT INTO `project` VALUES ('fd103873db3f49999147e1168555b0eb','child','{}','',1,'c3d1effe4ac24d108edc9041160730c3','67a7ab1da31548d6834858a015a64f9a',0);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `project_option` (
  `project_id` varchar(64) NOT NULL,
  `option_id` varchar(4) NOT NULL,
  `option_value` text DEFAULT NULL,
  PRIMARY KEY (`project_id`,`option_id`),
  CONSTRAINT `project_option_ibfk_1` FOREIGN KEY (`project_id`) REFERENCES `project` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `project_tag` (
  `project_id` varchar(64) NOT NULL,
  `name` varchar(255) NOT NULL,
  PRIMARY KEY (`project_id`,`name`),
  CONSTRAINT `project_tag_ibfk_1` FOREIGN KEY (`project_id`) REFERENCES `project` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `project_tag` VALUES ('67a7ab1da31548d6834858a015a64f9a','a');
INSERT INTO `project_tag` VALUES ('67a7ab1da31548d6834858a015a64f9a','b');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `region` (
  `id` varchar(255) NOT NULL,
  `description` varchar(255) NOT NULL,
  `parent_region_id` varchar(255) DEFAULT NULL,
  `extra` text DEFAULT NULL,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `region` VALUES ('RegionOne','',NULL,'{}');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `role` (
  `id` varchar(64) NOT NULL,
  `name` varchar(255) NOT NULL,
  `extra` text DEFAULT NULL,
  `domain_id` varchar(64) NOT NULL DEFAULT '<<null>>',
  `description` varchar(255) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `ixu_role_name_domain_id` (`name`,`domain_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `role` VALUES ('1a337173b2274d80ba9bc70ac5d3e003','admin','{}','<<null>>',NULL);
INSERT INTO `role` VALUES ('2dee5a598c8d46429e1ff3bc8bfc0a8b','auditor','{}','<<null>>',NULL);
INSERT INTO `role` VALUES ('619ed825e4b34bfa993ba19ea11b5223','service','{}','<<null>>',NULL);
INSERT INTO `role` VALUES ('654032bb62ef47859b032a2326bad431','manager','{}','<<null>>',NULL);
INSERT INTO `role` VALUES ('b47a5ca9466d41fd8ecac7b8dec1acb9','reader','{}','<<null>>',NULL);
INSERT INTO `role` VALUES ('d643a265a9424f5f8537cd95c562ec6b','member','{}','<<null>>',NULL);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `role_option` (
  `role_id` varchar(64) NOT NULL,
  `option_id` varchar(4) NOT NULL,
  `option_value` text DEFAULT NULL,
  PRIMARY KEY (`role_id`,`option_id`),
  CONSTRAINT `role_option_ibfk_1` FOREIGN KEY (`role_id`) REFERENCES `role` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `role_option` VALUES ('1a337173b2274d80ba9bc70ac5d3e003','IMMU','true');
INSERT INTO `role_option` VALUES ('2dee5a598c8d46429e1ff3bc8bfc0a8b','IMMU','true');
INSERT INTO `role_option` VALUES ('619ed825e4b34bfa993ba19ea11b5223','IMMU','true');
INSERT INTO `role_option` VALUES ('654032bb62ef47859b032a2326bad431','IMMU','true');
INSERT INTO `role_option` VALUES ('b47a5ca9466d41fd8ecac7b8dec1acb9','IMMU','true');
INSERT INTO `role_option` VALUES ('d643a265a9424f5f8537cd95c562ec6b','IMMU','true');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `service` (
  `id` varchar(64) NOT NULL,
  `type` varchar(255) DEFAULT NULL,
  `enabled` tinyint(1) NOT NULL DEFAULT 1,
  `extra` text DEFAULT NULL,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `service` VALUES ('4c62233779f944d29fa981df62e351c9','compute',1,'{\"name\": \"nova\", \"description\": \"Servers\"}');
INSERT INTO `service` VALUES ('d469ad25d65f442fa3ad11fa370667e9','identity',1,'{\"name\": \"keystone\"}');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `system_assignment` (
  `type` varchar(64) NOT NULL,
  `actor_id` varchar(64) NOT NULL,
  `target_id` varchar(64) NOT NULL,
  `role_id` varchar(64) NOT NULL,
  `inherited` tinyint(1) NOT NULL,
  PRIMARY KEY (`type`,`actor_id`,`target_id`,`role_id`,`inherited`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `system_assignment` VALUES ('UserSystem','56249397908a401f869aae19c5892a0a','system','b47a5ca9466d41fd8ecac7b8dec1acb9',0);
INSERT INTO `system_assignment` VALUES ('UserSystem','a344e98c4d904936bdb4d151fc8a0560','system','1a337173b2274d80ba9bc70ac5d3e003',0);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `trust` (
  `id` varchar(64) NOT NULL,
  `trustor_user_id` varchar(64) NOT NULL,
  `trustee_user_id` varchar(64) NOT NULL,
  `project_id` varchar(64) DEFAULT NULL,
  `impersonation` tinyint(1) NOT NULL,
  `deleted_at` datetime DEFAULT NULL,
  `expires_at` datetime DEFAULT NULL,
  `remaining_uses` int(11) DEFAULT NULL,
  `extra` text DEFAULT NULL,
  `expires_at_int` bigint(20) DEFAULT NULL,
  `redelegated_trust_id` varchar(64) DEFAULT NULL,
  `redelegation_count` int(11) DEFAULT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `duplicate_trust_constraint` (`trustor_user_id`,`trustee_user_id`,`project_id`,`impersonation`,`expires_at`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `trust` VALUES ('703c8c33aafd4ad5bc2c32011225dda7','c9038a969afd41b3bcb3a71e98a3a02b','56249397908a401f869aae19c5892a0a','fd103873db3f49999147e1168555b0eb',0,NULL,NULL,NULL,'{\"roles\": [{\"id\": \"d643a265a9424f5f8537cd95c562ec6b\"}]}',NULL,NULL,0);
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `trust_role` (
  `trust_id` varchar(64) NOT NULL,
  `role_id` varchar(64) NOT NULL,
  PRIMARY KEY (`trust_id`,`role_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `trust_role` VALUES ('703c8c33aafd4ad5bc2c32011225dda7','d643a265a9424f5f8537cd95c562ec6b');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `user` (
  `id` varchar(64) NOT NULL,
  `extra` text DEFAULT NULL,
  `enabled` tinyint(1) DEFAULT NULL,
  `default_project_id` varchar(64) DEFAULT NULL,
  `created_at` datetime DEFAULT NULL,
  `last_active_at` date DEFAULT NULL,
  `domain_id` varchar(64) NOT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `ixu_user_id_domain_id` (`id`,`domain_id`),
  KEY `ix_default_project_id` (`default_project_id`),
  KEY `domain_id` (`domain_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `user` VALUES ('4aff276953484abbb3cabe2bd8624a21','{\"email\": \"pbkdf2_sha512@example.org\"}',1,NULL,'2026-11-21 17:28:43',NULL,'default');
INSERT INTO `user` VALUES ('56249397908a401f869aae19c5892a0a','{\"email\": \"scrypt@example.org\"}',1,NULL,'2026-11-21 17:28:38',NULL,'default');
INSERT INTO `user` VALUES ('a344e98c4d904936bdb4d151fc8a0560','{}',1,NULL,'2026-11-21 17:26:15','2026-11-21','default');
INSERT INTO `user` VALUES ('ac9e6d5d76894d54927506e116a74fa7','{\"email\": \"bcrypt_sha256@example.org\"}',1,NULL,'2026-11-21 17:28:32',NULL,'default');
INSERT INTO `user` VALUES ('c9038a969afd41b3bcb3a71e98a3a02b','{\"email\": \"bcrypt@example.org\"}',1,NULL,'2026-11-21 17:28:26','2026-11-21','default');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `user_group_membership` (
  `user_id` varchar(64) NOT NULL,
  `group_id` varchar(64) NOT NULL,
  PRIMARY KEY (`user_id`,`group_id`),
  KEY `group_id` (`group_id`),
  CONSTRAINT `fk_user_group_membership_group_id` FOREIGN KEY (`group_id`) REFERENCES `group` (`id`),
  CONSTRAINT `fk_user_group_membership_user_id` FOREIGN KEY (`user_id`) REFERENCES `user` (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `user_group_membership` VALUES ('c9038a969afd41b3bcb3a71e98a3a02b','be52fdf4cd98482fae49a310a3cd694f');
/*!40101 SET @saved_cs_client     = @@character_set_client */;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `user_option` (
  `user_id` varchar(64) NOT NULL,
  `option_id` varchar(4) NOT NULL,
  `option_value` text DEFAULT NULL,
  PRIMARY KEY (`user_id`,`option_id`),
  CONSTRAINT `user_option_ibfk_1` FOREIGN KEY (`user_id`) REFERENCES `user` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
/*!40101 SET character_set_client = @saved_cs_client */;
INSERT INTO `user_option` VALUES ('4aff276953484abbb3cabe2bd8624a21','1001','true');
INSERT INTO `user_option` VALUES ('56249397908a401f869aae19c5892a0a','1001','true');
INSERT INTO `user_option` VALUES ('ac9e6d5d76894d54927506e116a74fa7','1001','true');
INSERT INTO `user_option` VALUES ('c9038a969afd41b3bcb3a71e98a3a02b','1001','true');
