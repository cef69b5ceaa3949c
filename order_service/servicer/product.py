"""ProductService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from typing import Any

from common.paging import Page
from common.rpc.convert import money_from, money_to, time_to
from common.rpc.reasons import refuses
from order_service.errors import ProductNotFound, ProductNotSeated, ProductSeated, SeatExists
from order_service.model.product import CreateProduct, Product, RestockProduct
from order_service.model.seat import AddSeats
from order_service.use_cases.product import Products
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc


class ProductServicer(order_pb2_grpc.ProductServiceServicer):
    def __init__(self, products: Products) -> None:
        self._products = products

    @refuses()
    async def CreateProduct(
        self, request: pb.CreateProductRequest, context: Any
    ) -> pb.CreateProductResponse:
        written = await self._products.write(
            CreateProduct(
                request.name, money_from(request.price), request.stock, request.request_id
            )
        )
        return pb.CreateProductResponse(product=_product(written.value), replayed=written.replayed)

    @refuses(ProductNotFound, ProductSeated)
    async def RestockProduct(
        self, request: pb.RestockProductRequest, context: Any
    ) -> pb.RestockProductResponse:
        written = await self._products.write(
            RestockProduct(request.product_id, request.quantity, request.request_id)
        )
        return pb.RestockProductResponse(product=_product(written.value), replayed=written.replayed)

    @refuses(ProductNotFound, ProductNotSeated, SeatExists)
    async def AddSeats(self, request: pb.AddSeatsRequest, context: Any) -> pb.AddSeatsResponse:
        written = await self._products.write(
            AddSeats(request.product_id, tuple(request.labels), request.request_id)
        )
        return pb.AddSeatsResponse(product=_product(written.value), replayed=written.replayed)

    @refuses(ProductNotFound)
    async def GetProduct(
        self, request: pb.GetProductRequest, context: Any
    ) -> pb.GetProductResponse:
        product = await self._products.get_product(request.product_id)
        return pb.GetProductResponse(product=_product(product))

    @refuses()
    async def ListProducts(
        self, request: pb.ListProductsRequest, context: Any
    ) -> pb.ListProductsResponse:
        page = Page.of(request.page_size, request.page_token, filters=())
        found = await self._products.list_products(page)
        products, next_page_token = found.messages(_product)
        return pb.ListProductsResponse(products=products, next_page_token=next_page_token)


def _product(product: Product) -> pb.Product:
    return pb.Product(
        product_id=product.product_id,
        name=product.name,
        price=money_to(product.price),
        stock=product.free,
        reserved=product.reserved,
        sold=product.sold,
        version=product.version,
        create_time=time_to(product.create_time),
        update_time=time_to(product.update_time),
        seated=product.seated,
    )
