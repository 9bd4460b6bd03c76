//! API tokens, links, browser sessions, roles and scopes.

use hyperfactory_hub::access::{Access, AccessError, Grant, Role, SESSION_LIFETIME};
use hyperfactory_hub::audit::{Actor, action};
use protocol::TenantId;
use store::{on_both_engines, sqlx};

use crate::setup::{HERE, NOW, World, acme, at, seconds};

fn grant(role: Role, tenant: Option<TenantId>) -> Grant {
    Grant { name: "ann".into(), role, tenant, valid_for: None }
}

on_both_engines! {
    async fn an_api_token_opens_what_it_was_made_for(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let actor = Actor::operator("root");
        let (_, viewer) = access.create_api_token(grant(Role::Viewer, Some(acme())), &actor, NOW).await.expect("made");
        let principal = access.authenticate(&viewer, HERE, NOW).await.expect("let in");
        assert!(principal.may(Role::Viewer) && !principal.may(Role::Operator) && !principal.may(Role::Admin));
        let other: TenantId = "other".parse().expect("an id");
        assert!(principal.sees(&acme()) && !principal.sees(&other) && !principal.sees_all());

        let (_, admin) = access.create_api_token(grant(Role::Admin, None), &actor, NOW).await.expect("made");
        let principal = access.authenticate(&admin, HERE, NOW).await.expect("let in");
        assert!(principal.may(Role::Admin) && principal.sees(&other) && principal.sees_all());
        // What stands in the database opens nothing.
        let hashes: Vec<Vec<u8>> = sqlx::query_scalar("SELECT secret_hash FROM api_tokens")
            .fetch_all(world.database.reader())
            .await
            .expect("hashes");
        for hash in hashes {
            let forged = format!("hft_{}", data_encoding::BASE64URL_NOPAD.encode(&hash));
            access.authenticate(&forged, HERE, NOW).await.expect_err("a hash is no token");
        }
        world.close().await;
    }

    async fn tokens_end_and_are_revoked(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let short = Grant { valid_for: Some(seconds(60)), ..grant(Role::Operator, None) };
        let (_, token) = access.create_api_token(short, &Actor::system(), NOW).await.expect("made");
        access.authenticate(&token, HERE, at(59)).await.expect("let in");
        assert!(matches!(access.authenticate(&token, HERE, at(60)).await, Err(AccessError::Invalid)));

        let (info, token) =
            access.create_api_token(grant(Role::Operator, None), &Actor::system(), NOW).await.expect("made");
        let browser = access.sign_in(&token, HERE, NOW).await.expect("signed in");
        access.revoke_api_token(&info.id, &Actor::operator("root"), at(1)).await.expect("revoked");
        access.authenticate(&token, HERE, at(2)).await.expect_err("revoked");
        access.session(&browser.cookie, at(2)).await.expect_err("revoked with it");
        assert!(matches!(access.revoke_api_token("nope", &Actor::system(), NOW).await, Err(AccessError::Unknown(_))));
        assert_eq!(access.list_api_tokens().await.expect("tokens").len(), 2);
        assert_eq!(world.audited(action::API_TOKEN_REVOKED).await.len(), 1);
        world.close().await;
    }

    async fn a_session_that_is_opened_while_its_token_is_revoked_opens_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let (info, token) =
            access.create_api_token(grant(Role::Operator, None), &Actor::system(), NOW).await.expect("made");
        let browser = access.sign_in(&token, HERE, NOW).await.expect("signed in");
        let read = "SELECT secret_hash, expires_at FROM web_sessions";
        let session: (Vec<u8>, i64) = sqlx::query_as(read).fetch_one(world.database.reader()).await.expect("a row");
        access.revoke_api_token(&info.id, &Actor::operator("root"), at(1)).await.expect("revoked");
        // Who has found the token good before that writes its session after it.
        let mut transaction = world.database.begin_write().await.expect("begun");
        sqlx::query(
            "INSERT INTO web_sessions (secret_hash, name, role, created_at, expires_at, api_token)
             VALUES ($1, 'ann', 'operator', 0, $2, $3)",
        )
        .bind(session.0)
        .bind(session.1)
        .bind(&info.id)
        .execute(&mut *transaction)
        .await
        .expect("written");
        transaction.commit().await.expect("committed");
        assert!(matches!(access.session(&browser.cookie, at(2)).await, Err(AccessError::Invalid)));
        world.close().await;
    }

    async fn a_link_signs_one_browser_in(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let link =
            access.create_sign_in_link(grant(Role::Admin, None), &Actor::system(), NOW).await.expect("a link");
        let (one, two) = tokio::join!(access.sign_in(&link, HERE, at(1)), access.sign_in(&link, HERE, at(1)));
        assert_eq!(u8::from(one.is_ok()) + u8::from(two.is_ok()), 1);
        let browser = one.or(two).expect("one is in");
        let session = access.session(&browser.cookie, at(2)).await.expect("in");
        assert_eq!(session.principal.role, Role::Admin);
        assert!(session.csrf_matches(&browser.session.csrf));
        assert!(!session.csrf_matches("") && !session.csrf_matches(&browser.cookie));
        access.session(&browser.cookie, at(1).plus(SESSION_LIFETIME)).await.expect_err("over");
        // One secret is not another: neither cookie nor link is an API token.
        access.authenticate(&browser.cookie, HERE, at(2)).await.expect_err("a cookie");
        access.authenticate(&link, HERE, at(2)).await.expect_err("a link");

        access.sign_out(&browser.cookie, HERE, at(3)).await.expect("out");
        access.session(&browser.cookie, at(3)).await.expect_err("out");
        assert_eq!(world.audited("signin").await.len(), 1);
        assert_eq!(world.audited(action::SIGN_IN_REFUSED).await.len(), 1);
        assert_eq!(world.audited(action::SIGNED_OUT).await.len(), 1);
        world.close().await;
    }

    async fn an_old_link_opens_nothing(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let link =
            access.create_sign_in_link(grant(Role::Admin, None), &Actor::system(), NOW).await.expect("a link");
        access.sign_in(&link, HERE, at(15 * 60)).await.map(|_| ()).expect_err("too late");
        world.close().await;
    }

    async fn a_guesser_is_told_to_stop_and_does_not_fill_the_log(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let (_, token) =
            access.create_api_token(grant(Role::Viewer, None), &Actor::system(), NOW).await.expect("made");
        for _ in 0..10 {
            assert!(matches!(access.sign_in("hfl_guess", HERE, NOW).await, Err(AccessError::Invalid)));
        }
        for _ in 0..10 {
            assert!(matches!(access.sign_in("hfl_guess", HERE, NOW).await, Err(AccessError::TooMany { .. })));
        }
        assert_eq!(world.audited(action::SIGN_IN_REFUSED).await.len(), 10);
        access.authenticate(&token, HERE, NOW).await.expect("what is valid gets in all the same");
        let elsewhere = "2001:db8::1".parse().expect("an address");
        assert!(matches!(access.sign_in("hfl_guess", elsewhere, NOW).await, Err(AccessError::Invalid)));
        assert!(matches!(access.sign_in("hfl_guess", HERE, at(300)).await, Err(AccessError::Invalid)), "forgiven");
        world.close().await;
    }

    async fn grants_that_can_not_be_are_refused(database: TestDatabase) {
        let world = World::new(database).await;
        let access = Access::new(world.database.clone());
        let nobody = grant(Role::Viewer, Some("nobody".parse().expect("an id")));
        assert!(matches!(access.create_api_token(nobody.clone(), &Actor::system(), NOW).await, Err(AccessError::Grant(_))));
        assert!(matches!(access.create_sign_in_link(nobody, &Actor::system(), NOW).await, Err(AccessError::Grant(_))));
        let nameless = Grant { name: " ".into(), ..grant(Role::Viewer, None) };
        assert!(matches!(access.create_api_token(nameless, &Actor::system(), NOW).await, Err(AccessError::Grant(_))));
        world.close().await;
    }
}
