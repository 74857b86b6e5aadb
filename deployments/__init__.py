"""How a study is brought to machines: work pools, automations, and the stack of servers and workers on this one."""
