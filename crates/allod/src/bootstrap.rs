//! First-start facts: passwords, the host's id, and the files clients use (`clouds.yaml`, `openrc`, `ca.crt`).

use std::fs;

use anyhow::{Context, Result};
use base::{Entropy, HostId};
use serde_json::json;

use crate::config::{Config, State};
use crate::files;
use crate::pki::Pki;

/// Passwords of the first users; in `DIR/secrets.json`, mode 0600.
pub use cloud::Passwords as Secrets;

/// Reads the passwords, making them at the first start: given ones as given, others random.
pub fn secrets(state: &State, config: &Config) -> Result<Secrets> {
    let path = state.path("secrets.json");
    if let Ok(bytes) = fs::read(&path) {
        return serde_json::from_slice(&bytes).context("secrets.json is damaged");
    }
    let entropy = Entropy::system();
    let choose = |given: &str| if given.is_empty() { entropy.password(24) } else { given.to_owned() };
    let secrets = Secrets {
        admin: choose(&config.passwords.admin),
        demo: choose(&config.passwords.demo),
        alt: choose(&config.passwords.alt),
    };
    files::write_secret(&path, &serde_json::to_vec_pretty(&secrets)?)?;
    Ok(secrets)
}

/// The id of this machine as a host; made once.
pub fn host_id(state: &State) -> Result<HostId> {
    let path = state.path("host_id");
    if let Ok(text) = fs::read_to_string(&path) {
        return text.trim().parse().map_err(|_| anyhow::anyhow!("{} is damaged", path.display()));
    }
    let id = HostId::random(&Entropy::system());
    files::write_secret(&path, format!("{id}\n").as_bytes())?;
    Ok(id)
}

/// Writes `clouds.yaml`, `openrc` and `ca.crt`.
pub fn client_files(state: &State, config: &Config, secrets: &Secrets, pki: &Pki) -> Result<()> {
    let ca = state.path("ca.crt");
    files::write_secret(&ca, pki.ca_pem()?.as_bytes())?;
    let auth_url = format!("{}/identity/v3", config.url());
    let cloud = |user: &str, password: &str| {
        json!({
            "auth": {
                "auth_url": auth_url,
                "username": user,
                "password": password,
                "project_name": user,
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": config.region,
            "cacert": ca,
            "identity_api_version": "3",
        })
    };
    let clouds = json!({"clouds": {
        "allod": cloud("demo", &secrets.demo),
        "allod-alt": cloud("alt", &secrets.alt),
        "allod-admin": cloud("admin", &secrets.admin),
    }});
    files::write_secret(&state.path("clouds.yaml"), serde_norway::to_string(&clouds)?.as_bytes())?;
    let openrc = format!(
        "# . openrc: user demo, project demo. Other users: export OS_CLIENT_CONFIG_FILE={dir}/clouds.yaml OS_CLOUD=allod-admin\n\
         export OS_AUTH_URL={auth_url}\nexport OS_USERNAME=demo\nexport OS_PASSWORD={password}\nexport OS_PROJECT_NAME=demo\n\
         export OS_USER_DOMAIN_NAME=Default\nexport OS_PROJECT_DOMAIN_NAME=Default\nexport OS_REGION_NAME={region}\n\
         export OS_IDENTITY_API_VERSION=3\nexport OS_CACERT={ca}\nexport SSL_CERT_FILE={ca}\n",
        dir = state.dir().display(),
        password = shell_quote(&secrets.demo),
        region = config.region,
        ca = ca.display(),
    );
    files::write_secret(&state.path("openrc"), openrc.as_bytes())
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use base::Clock;

    use super::*;

    #[test]
    fn passwords_are_kept_and_files_are_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::create(dir.path()).unwrap();
        let mut config = Config::default();
        config.passwords.demo = "it's".into();
        let first = secrets(&state, &config).unwrap();
        assert_eq!(first.demo, "it's");
        assert_eq!(first.admin.len(), 24);
        config.passwords.demo = "other".into();
        assert_eq!(secrets(&state, &config).unwrap().demo, "it's", "a second start changes no password");
        let pki = Pki::open(&state.path("pki"), base::SystemClock.now()).unwrap();
        client_files(&state, &config, &first, &pki).unwrap();
        for file in ["clouds.yaml", "openrc", "ca.crt", "secrets.json"] {
            let mode = fs::metadata(state.path(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert!(fs::read_to_string(state.path("openrc")).unwrap().contains(r"OS_PASSWORD='it'\''s'"));
        let id = host_id(&state).unwrap();
        assert_eq!(host_id(&state).unwrap(), id);
    }
}
