//! Configurations that cannot work, and secrets.

use wire::paced::terms::SEATS;
use wire::paced::{PacedClass, PacedTerms};

use super::*;

#[test]
fn control_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Control>();
}

#[test]
fn contradictory_configuration_names_the_contradiction() {
    let plan = Plan::new(Class::L, 2);
    let check = |position: usize, change: &dyn Fn(&mut Config, &mut TrustSetup)| {
        let (mut config, mut trust) = plan.first(position);
        change(&mut config, &mut trust);
        check_all(vec![config], &trust).unwrap_err()
    };
    assert_eq!(check(1, &|c, _| c.position = 3), BadConfig::Position { position: 3, hops: 3 });
    assert_eq!(check(1, &|c, _| c.terms.identities.truncate(2)), BadConfig::Hops(3, 2));
    assert_eq!(check(1, &|c, _| c.terms.classes[0].class = Class::M), BadConfig::Class(Class::L.into()));
    let nothing = |_: &mut Config, t: &mut TrustSetup| t.view = View::new(t.view.terms().clone());
    assert_eq!(check(1, &nothing), BadConfig::NoDescriptor(1));
    assert_eq!(check(0, &nothing), BadConfig::NoNextDescriptor(1));
    assert_eq!(check(1, &|_, t| t.keys.clear()), BadConfig::Keys(1));
    assert_eq!(check(1, &|_, t| t.keys[0].noise = Secret::new([1; 32])), BadConfig::Keys(1));
    let most = (1 << 26) - 512;
    let bad = check(3, &|c, _| c.caps.setups.per_second = 20_000);
    let BadConfig::ReplayCache { rate: 20_000, places: 84_400_512, rate_max } = bad else { panic!("{bad}") };
    assert!(check_rate(&plan, rate_max) && most / u64::from(rate_max) < 4221, "{rate_max}");
    assert!(matches!(check(1, &|c, _| c.timing.expire_after = c.timing.renew_after), BadConfig::Value(_)));
    assert!(matches!(check(2, &|c, _| c.caps.setups.burst = 2049), BadConfig::Value(_)));

    let mut expired = Plan::new(Class::L, 2);
    expired.descriptors[0].not_after = 1_800_000_000 - 7200;
    let (config, trust) = expired.first(1);
    assert_eq!(check_all(vec![config], &trust), Err(BadConfig::Expired(7200)));
}

#[test]
fn links_of_a_paced_class_follow_its_seats() {
    let plan = Plan::new(Class::L, 2);
    let with_seats = |seats| {
        let (mut config, trust) = plan.first(1);
        config.terms.classes.clear();
        let class = PacedClass::new(Class::L);
        config.terms.paced = vec![PacedTerms { seats, ..PacedTerms::new(class, "data", 3) }];
        (config.paced, config.caps.links) = (true, 7);
        (config.links_max(), check_all(vec![config], &trust))
    };
    for seats in [256, *SEATS.end()] {
        assert_eq!(with_seats(seats), (2 * usize::from(seats), Ok(())));
    }
}

fn check_all(configs: Vec<Config>, trust: &TrustSetup) -> Result<(), BadConfig> {
    Config::check(&configs, trust, crate::UNIX_EPOCH + secs(1_800_000_000))
}

fn check_rate(plan: &Plan, rate: u32) -> bool {
    let (mut config, trust) = plan.first(3);
    config.caps.setups.per_second = rate;
    check_all(vec![config], &trust).is_ok()
}

#[test]
fn classes_that_do_not_fit_together_are_refused() {
    let mut plan = Plan::new(Class::S, 2);
    plan.add_class(Class::L);
    let check = |position: usize, change: &dyn Fn(&mut Vec<Config>)| {
        let (mut configs, trust) =
            plan.configs(position, State::fresh(1_800_000_000), crate::UNIX_EPOCH + secs(1_800_000_000));
        change(&mut configs);
        check_all(configs, &trust)
    };
    assert_eq!((check(0, &|_| ()), check(1, &|_| ())), (Ok(()), Ok(())));
    let without_first = |configs: &mut Vec<Config>| drop(configs.remove(0));
    assert_eq!(check(1, &without_first), Err(BadConfig::FirstClass(Class::S.into())));
    assert_eq!(check(0, &without_first), Ok(()), "an entry uses the classes that it likes");
    assert!(matches!(check(1, &|configs| configs.clear()), Err(BadConfig::Value(_))));
    assert!(matches!(check(1, &|configs| configs.reverse()), Err(BadConfig::Value(_))));
    assert!(matches!(check(1, &|configs| configs[1].shape = configs[0].shape), Err(BadConfig::Value(_))));
    assert!(matches!(check(1, &|configs| configs[1].position = 2), Err(BadConfig::Value(_))));
    let setups = |per_second| {
        check(3, &|configs| configs.iter_mut().for_each(|config| config.caps.setups.per_second = per_second))
    };
    assert_eq!(setups(7_900), Ok(()));
    let Err(BadConfig::ReplayCache { rate: 16_000, rate_max, .. }) = setups(8_000) else {
        panic!("they share a cache")
    };
    assert!((15_800..16_000).contains(&rate_max), "{rate_max}");
}

#[test]
fn mix_admits_setups_no_faster_than_acks_may_take() {
    let mut plan = Plan::new(Class::L, 2);
    plan.terms.classes[0].mixing_delay_ms = 1000;
    let rate = |position: usize| plan.first(position).0.setups().per_second;
    // An ack takes up to 500 ms and six times a second.
    assert_eq!((rate(1), rate(3)), ((4096 - 512) * 2 / 13, 1000));
}

#[test]
fn secrets_do_not_print() {
    let plan = Plan::new(Class::L, 1);
    let (config, trust) = plan.first(1);
    let text = format!("{config:?}");
    assert!(!text.contains("psk") && !text.contains("Secret"), "{text}");
    let bytes = format!("{:?}", trust.keys[0].noise.expose());
    assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
    let mut world = World::new(Plan::new(Class::L, 1));
    world.run_for(secs(2));
    let installed = world.node(1).channels.values().next().unwrap();
    assert_eq!(format!("{:?}", installed.keys), "ChannelKeys(..)");
}

#[test]
fn generator_cannot_be_run_back_to_past_ephemerals() {
    let mut world = up(Class::L, 1);
    let seed = |w: &World| w.node(1).control.classes[0].cx.rng.get_seed();
    let mut seen = std::collections::HashSet::from([seed(&world)]);
    let link = world.node(1).link(Side::Up).0;
    for _ in 0..3 {
        world.input(1, Input::Activity { link, received: true, sent: false });
        assert!(seen.insert(seed(&world)), "after an input");
        let (now, wall) = (world.now, world.wall(1));
        world.nodes.get_mut(&1).unwrap().control.tick(now, wall);
        assert!(seen.insert(seed(&world)), "after a tick");
    }
    // An attacker with the new state can seek to any position and finds no past value.
    let Context { rng, .. } = &mut world.nodes.get_mut(&1).unwrap().control.classes[0].cx;
    let past = draw_secret(rng);
    world.input(1, Input::Activity { link, received: true, sent: false });
    let mut stolen = world.node(1).control.classes[0].cx.rng.clone();
    stolen.set_word_pos(0);
    assert!((0..1000).all(|_| draw_secret(&mut stolen).expose() != past.expose()));
}
