"""Who serves: the policy, how aliases move, promotion."""
