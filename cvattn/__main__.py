from cvattn.cli import main

raise SystemExit(main())
