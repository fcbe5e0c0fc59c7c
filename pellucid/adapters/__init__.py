"""One adapter per framework, each behind the interface of `pellucid.adapters.base`."""
