//! Both ends of the control stream, against each other and against peers that break the rules.
