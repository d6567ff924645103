"""What user programs hold: Producer, Consumer, Admin, and what they share. Never imports broker or coordinator."""
