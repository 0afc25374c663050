//! Leases: one holder at a time, with a token that grows with every change of holder (fencing).

use std::time::Duration;

use base::{Result, Timestamp};

use crate::query::Sql;
use crate::value::Value;

/// A lease that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What is leased.
    pub name: String,
    /// Grows with every change of holder; a write fenced with an older token is refused by its receiver.
    pub token: u64,
    /// Until when.
    pub expires_at: Timestamp,
}

impl crate::Store {
    /// Takes or renews the lease `name` for `holder`; `None` while another holds it.
    ///
    /// # Errors
    /// From the database only.
    pub async fn lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<Lease>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.write(move |tx| {
            let now = tx.now();
            let expires_at = now.plus(ttl);
            let postgres = tx.connection.postgres();
            let mut sql =
                Sql::new("SELECT holder, token, expires_at FROM allod_leases WHERE name = ", postgres);
            sql.bind(Value::Text(name.clone()));
            let held = tx.connection.query(&sql.text, &sql.params)?.into_iter().next();
            let token = match held.as_deref() {
                None => {
                    let mut sql = Sql::new(
                        "INSERT INTO allod_leases (token, name, holder, expires_at) VALUES (1, ",
                        postgres,
                    );
                    sql.bind(Value::Text(name.clone()))
                        .push(", ")
                        .bind(Value::Text(holder.clone()))
                        .push(", ");
                    sql.bind(Value::Int(expires_at.0)).push(")");
                    match tx.connection.execute(&sql.text, &sql.params) {
                        Ok(_) => return Ok(Some(Lease { name: name.clone(), token: 1, expires_at })),
                        Err(crate::tx::Failure::Unique(why)) => return Err(base::Error::retry(why)),
                        Err(other) => return Err(other.into()),
                    }
                }
                Some([by, token, until]) => {
                    let mine = *by == Value::Text(holder.clone());
                    if !mine && until.int() > now.0 {
                        return Ok(None);
                    }
                    // The same holder after its time ended may have lost it in between: a new token all the same.
                    if mine && until.int() > now.0 { token.int() } else { token.int() + 1 }
                }
                Some(_) => return Err(base::Error::internal("allod_leases has other columns")),
            };
            let mut sql = Sql::new("UPDATE allod_leases SET holder = ", postgres);
            sql.bind(Value::Text(holder.clone()))
                .push(", token = ")
                .bind(Value::Int(token))
                .push(", expires_at = ");
            sql.bind(Value::Int(expires_at.0)).push(" WHERE name = ").bind(Value::Text(name.clone()));
            tx.connection.execute(&sql.text, &sql.params)?;
            Ok(Some(Lease { name: name.clone(), token: u64::try_from(token).unwrap_or(0), expires_at }))
        })
        .await
    }

    /// Gives the lease back, if `holder` has it.
    ///
    /// # Errors
    /// From the database only.
    pub async fn release(&self, name: &str, holder: &str) -> Result<()> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.write(move |tx| {
            let mut sql =
                Sql::new("UPDATE allod_leases SET expires_at = 0 WHERE name = ", tx.connection.postgres());
            sql.bind(Value::Text(name.clone())).push(" AND holder = ").bind(Value::Text(holder.clone()));
            tx.connection.execute(&sql.text, &sql.params)?;
            Ok(())
        })
        .await
    }
}
