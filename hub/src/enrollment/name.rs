//! Node names: from the token or from the host, and unique in their tenant.

use protocol::{NodeKind, TenantId};
use store::sqlx;
use store::{StoreError, Transaction};

/// Longest name, in characters.
const MAX: usize = 64;

/// A name made of letters, digits, '.', '-' and '_': other characters become '-'. `None` when nothing is left.
pub(super) fn clean(name: &str) -> Option<String> {
    let fits = |c: char| if c.is_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    let cleaned: String = name.trim().chars().map(fits).take(MAX).collect();
    cleaned.chars().any(char::is_alphanumeric).then_some(cleaned)
}

/// The token's name or else the node's own, with a number behind it when the tenant has one of that name.
pub(super) async fn choose(
    transaction: &mut Transaction,
    tenant: &TenantId,
    fixed: Option<&str>,
    wanted: &str,
    kind: NodeKind,
) -> Result<String, StoreError> {
    let base = fixed.map(str::to_owned).or_else(|| clean(wanted)).unwrap_or_else(|| kind.to_string());
    let same: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM nodes WHERE tenant = $1 AND name = $2 AND removed_at IS NULL")
            .bind(tenant.as_str())
            .bind(&base)
            .fetch_optional(&mut **transaction)
            .await?;
    if same.is_none() {
        return Ok(base);
    }
    let taken: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM nodes WHERE tenant = $1 AND removed_at IS NULL AND SUBSTR(name, 1, CAST($2 AS INTEGER)) = $3",
    )
    .bind(tenant.as_str())
    .bind(base.chars().count() as i64)
    .bind(&base)
    .fetch_all(&mut **transaction)
    .await?;
    Ok(free(&base, &taken))
}

fn free(base: &str, taken: &[String]) -> String {
    let mut name = base.to_owned();
    let mut number = 1usize;
    while taken.contains(&name) {
        number += 1;
        name = format!("{base}-{number}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_bounded() {
        let cases = [
            ("web-1.example", Some("web-1.example")),
            (" a<b>/c\n", Some("a-b--c")),
            ("Fräsmaschine_2", Some("Fräsmaschine_2")),
            ("", None),
            ("../..", None),
        ];
        for (given, expected) in cases {
            assert_eq!(clean(given).as_deref(), expected, "{given:?}");
        }
        assert_eq!(clean(&"x".repeat(100)).map(|name| name.len()), Some(MAX));
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let taken = ["web".to_owned(), "web-2".to_owned(), "website".to_owned()];
        assert_eq!(free("web", &taken), "web-3");
        assert_eq!(free("db", &taken), "db");
    }
}
