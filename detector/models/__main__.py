"""`python -m detector.models`; see detector/model_list.py."""

if __name__ == "__main__":
    from detector.model_list import main

    raise SystemExit(main())
