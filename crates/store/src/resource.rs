//! What a resource is.

use std::any::TypeId;
use std::fmt::{self, Display};

use base::{Error, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the store knows of every resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Grows with every change of the spec; fences hosts.
    pub generation: u64,
    /// Grows with every write; compare-and-set.
    pub revision: u64,
    /// When it was inserted.
    pub created_at: Timestamp,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// How a column is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// TEXT, compared by bytes.
    Text,
    /// BIGINT.
    Int,
}

/// A struct with a table; made by [`crate::resource!`].
pub trait Resource: Serialize + DeserializeOwned + Send + 'static {
    /// Its id.
    type Id: Serialize + Display + Clone + Send + Sync + 'static;
    /// Its table.
    const TABLE: &'static str;
    /// Its name in messages.
    const KIND: &'static str;
    /// Groups of columns that are unique together; a NULL is never equal.
    const UNIQUE: &'static [&'static [&'static str]];
    /// Columns with an index.
    const INDEX: &'static [&'static str];
    /// Its id.
    fn id(&self) -> &Self::Id;
    /// What the store knows of it.
    fn meta(&self) -> &Meta;
    /// The same, for the store to set.
    fn meta_mut(&mut self) -> &mut Meta;
    /// How a declared field is stored.
    fn column_kind(field: &str) -> Option<ColumnKind>;

    /// All declared columns without `id`, each once.
    fn columns() -> Vec<&'static str> {
        let mut columns: Vec<&'static str> = Vec::new();
        for column in Self::UNIQUE.iter().copied().flatten().chain(Self::INDEX) {
            if *column != "id" && !columns.contains(column) {
                columns.push(column);
            }
        }
        columns
    }
}

/// How values of `T` are stored: integers, booleans and timestamps (and `Option`s of them) as integers, all else as text.
pub fn kind_of<T: 'static>() -> ColumnKind {
    macro_rules! among {
        ($($t:ty),*) => { [$(TypeId::of::<$t>(), TypeId::of::<Option<$t>>()),*] };
    }
    let ints = among!(i8, i16, i32, i64, u8, u16, u32, u64, usize, bool, Timestamp);
    if ints.contains(&TypeId::of::<T>()) { ColumnKind::Int } else { ColumnKind::Text }
}

/// Declares a resource: a struct, its table, its columns.
///
/// `id` and `meta` are added to the fields. `unique` and `index` name fields of the struct; those are the columns that
/// queries may use, beside `id`, `created_at`, `updated_at`, `generation` and `revision`.
#[macro_export]
macro_rules! resource {
    (
        $(#[$attr:meta])*
        $vis:vis struct $name:ident, table $table:literal, id $id:ty {
            unique: [$([$($unique:ident),+ $(,)?]),* $(,)?],
            index: [$($index:ident),* $(,)?] $(,)?
        } {
            $($(#[$fattr:meta])* $fvis:vis $field:ident : $fty:ty),* $(,)?
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        $vis struct $name {
            /// Its id.
            pub id: $id,
            /// What the store knows of it.
            #[serde(skip)]
            pub meta: $crate::Meta,
            $($(#[$fattr])* $fvis $field: $fty,)*
        }

        impl $crate::Resource for $name {
            type Id = $id;
            const TABLE: &'static str = $table;
            const KIND: &'static str = stringify!($name);
            const UNIQUE: &'static [&'static [&'static str]] = &[$(&[$(stringify!($unique)),+]),*];
            const INDEX: &'static [&'static str] = &[$(stringify!($index)),*];
            fn id(&self) -> &$id { &self.id }
            fn meta(&self) -> &$crate::Meta { &self.meta }
            fn meta_mut(&mut self) -> &mut $crate::Meta { &mut self.meta }
            fn column_kind(field: &str) -> Option<$crate::ColumnKind> {
                match field {
                    "id" => Some($crate::ColumnKind::Text),
                    "created_at" | "updated_at" | "generation" | "revision" => Some($crate::ColumnKind::Int),
                    $(stringify!($field) => Some($crate::kind_of::<$fty>()),)*
                    _ => None,
                }
            }
        }
    };
}

/// Two resources that may not be alike are; the source of a `Conflict`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueViolation {
    /// The table.
    pub table: &'static str,
    /// The group of columns, `["id"]` for the id itself.
    pub columns: &'static [&'static str],
}

impl Display for UniqueViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} are unique in {}", self.columns.join(", "), self.table)
    }
}

impl std::error::Error for UniqueViolation {}

/// The uniqueness that was violated, if that is what `error` says.
pub fn unique_violation(error: &Error) -> Option<&UniqueViolation> {
    std::error::Error::source(error)?.downcast_ref()
}

pub(crate) fn conflict<R: Resource>(columns: &'static [&'static str]) -> Error {
    let kind = R::KIND.to_ascii_lowercase();
    Error::conflict(format!("A {kind} with the same {} exists already.", columns.join(", ")))
        .caused_by(UniqueViolation { table: R::TABLE, columns })
}
